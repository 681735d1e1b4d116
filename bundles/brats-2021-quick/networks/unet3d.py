"""The article's network: a 3D U-Net from four MRI modalities to the logits of four classes.

The article is "3D UNet for Brain Tumor Segmentation" by Mohamed Abdul Gafoor (2022), whose
`create_unet` in Keras this follows layer by layer. The idea of the U-Net is by Ronneberger et al.
(2015, arXiv:1505.04597).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.convolve import SameConv3d
from networks.instance_norm import InstanceNorm
from networks.regions import Content, cut, grown, halved, regions_of_levels, start_of
from networks.relu_dropout import relu_dropout
from networks.up_convolution import up_convolution

Norm = Literal["instance"] | None


class UNet3D(nn.Module):
    """A U-Net with two convolutions per level, and two more at the bottom of its decoder.

    On the way down each level has twice the filters of the level above it and half its size; on
    the way up each level is enlarged and joined with what the same level saw on the way down.
    The default settings are the article's and give 2,345,924 parameters.

    Layers are registered in the order in which data passes through them; the import of Keras
    weights relies on it.

    Args:
        in_channels: number of modalities.
        out_channels: number of classes, background included.
        num_levels: number of resolutions; the size of the image must be a multiple of
            `divisor`, which is ``2 ** (num_levels - 1)``.
        num_filters: number of filters at the top level.
        kernel_size: edge of every kernel in voxels, odd; the last convolution is 1x1x1.
        dropout: probability, in [0, 1), that a value is dropped after each convolution in training.
        norm: ``"instance"`` normalises after each convolution, before its ReLU; the article has
            no normalisation.
        residual: whether on the way down the two convolutions of a level learn what to add to what
            they get (He et al., 2016, arXiv:1512.03385; in a U-Net for tumours: Myronenko, 2018,
            arXiv:1810.11654).
        deep_supervision: number of levels below the top one whose logits, too, are returned in
            training (Dou et al., 2017, arXiv:1607.00582), at most ``num_levels - 2``.

    Raises:
        ValueError: a setting is out of range.
    """

    takes_content = True

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        num_levels: int = 4,
        num_filters: int = 16,
        kernel_size: int = 3,
        dropout: float = 0.25,
        norm: Norm = None,
        residual: bool = False,
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        _check_counts(
            in_channels=in_channels,
            out_channels=out_channels,
            num_levels=num_levels,
            num_filters=num_filters,
            kernel_size=kernel_size,
        )
        _check_layers(kernel_size=kernel_size, dropout=dropout, norm=norm)
        _check_deep_supervision(deep_supervision, num_levels=num_levels)
        self.norm = norm
        self.kernel_size = kernel_size
        self.divisor = 2 ** (num_levels - 1)

        options: dict[str, Any] = {"kernel_size": kernel_size, "dropout": dropout, "norm": norm}

        def two_convolutions(
            num_in: int, num_out: int, first: type[Convolution] = Convolution
        ) -> nn.Sequential:
            return nn.Sequential(
                convolution(num_in, num_out, kind=first, **options),
                convolution(num_out, num_out, **options),
            )

        filters = [num_filters * 2**level for level in range(num_levels)]
        self.encoder = nn.ModuleList(
            ResidualBlock(above, here, **options) if residual else two_convolutions(above, here)
            for above, here in pairwise([in_channels, *filters])
        )
        # The article's decoder starts at the bottom level, where there is nothing to enlarge.
        self.bottom = two_convolutions(filters[-1], filters[-1])
        self.decoder = nn.ModuleList(
            two_convolutions(below + here, here, first=JoiningConvolution)
            for below, here in pairwise(reversed(filters))
        )
        self.output = nn.Conv3d(filters[0], out_channels, kernel_size=1)
        # From the finest one on.
        self.coarse_outputs = nn.ModuleList(
            nn.Conv3d(number, out_channels, kernel_size=1)
            for number in filters[1 : deep_supervision + 1]
        )
        self.apply(initialise_like_keras)

    def forward(self, image: Tensor, content: Content | None = None) -> Tensor | list[Tensor]:
        """Return the logits (B, out_channels, X, Y, Z) of an image (B, in_channels, X, Y, Z).

        In training with deep supervision, a list: these, and those of the coarser levels, each
        half the size of the one before it.

        With `content`, only the logits within its box: the same that the whole image gives, up to
        rounding. Much of what lies outside is then known without being computed.

        Raises:
            ValueError: X, Y or Z is not a multiple of `divisor`.
        """
        self._check_shape(image)
        if content is not None:
            return self._of_content(image, content)
        x = image
        skips = []
        for level, block in enumerate(self.encoder):
            if level > 0:
                x = F.max_pool3d(x, kernel_size=2)
            x = block(x)
            skips.append(x)

        x = self.bottom(skips.pop())
        supervised = list(self.coarse_outputs) if self.training else []
        coarse: list[Tensor] = []
        for block in self.decoder:
            x = _joined(block, x, skips.pop())
            if 0 < len(skips) <= len(supervised):
                coarse.insert(0, supervised[len(skips) - 1](x))
        return [self.output(x), *coarse] if supervised else self.output(x)

    def _of_content(self, image: Tensor, content: Content) -> Tensor:
        """Return the logits within the box of `content`: the top level is computed there alone.

        The levels below see everything on the way down, as the top level's background is known; on
        the way up each computes what the one above it needs.
        """
        size, halo = image.shape[2:], 2 * (self.kernel_size // 2)
        if self._looks_everywhere() or not self.decoder or min(size) < 2 * halo + 2:
            return cut(self(image), content.box)  # whole, and so without `content`
        levels = regions_of_levels(content.box, size=size, num_levels=len(self.decoder), halo=halo)
        top = levels[-1]
        around = grown(top, by=halo, size=size)
        skip = cut(self.encoder[0](cut(image, around)), top, origin=start_of(around))
        x = self._pooled_background(content.background, size=size, halo=halo)
        cut(x, halved(top)).copy_(F.max_pool3d(skip, kernel_size=2))
        skips = [(skip, start_of(top))]
        del skip
        for block in self.encoder[1:]:
            x = block(x)
            skips.append((x, (0, 0, 0)))
            x = F.max_pool3d(x, kernel_size=2)
        x = self.bottom(skips.pop()[0])
        origin = (0, 0, 0)
        for block, here in zip(self.decoder, levels, strict=True):
            below = cut(x, halved(here), origin=origin)
            skip, beginning = skips.pop()
            x = _joined(block, below, cut(skip, here, origin=beginning))
            origin = start_of(here)
        return self.output(cut(x, content.box, origin=origin))

    def _pooled_background(self, background: Tensor, *, size: Sequence[int], halo: int) -> Tensor:
        """Return what the second level gets of an image that is nothing but background.

        It differs at the faces only, as far as `halo`, and so is repeated from a small volume.
        """
        edge = 2 * halo + 2
        volume = background.expand(-1, -1, edge, edge, edge).contiguous()
        small = F.max_pool3d(self.encoder[0](volume), kernel_size=2)
        for axis, length in enumerate(size, start=2):
            place = torch.arange(length // 2, device=small.device)
            behind = place - (length // 2 - halo - 1)
            index = torch.maximum(place.clamp(max=halo // 2), behind)
            small = small.index_select(axis, index)
        return small

    def _looks_everywhere(self) -> bool:
        """Whether there is a normalisation, or dropout that draws for every voxel."""
        drawing = (m for m in self.modules() if isinstance(m, nn.Dropout) and m.training and m.p)
        return self.norm is not None or any(drawing)

    def _check_shape(self, image: Tensor) -> None:
        size = image.shape[2:]
        if len(size) != 3 or any(n == 0 or n % self.divisor for n in size):
            raise ValueError(
                f"expected an image (B, C, X, Y, Z) whose X, Y and Z are multiples of "
                f"{self.divisor}; found the shape {tuple(image.shape)}. Pad the image first, for "
                f"example with MONAI's DivisiblePad(k={self.divisor})"
            )


def _joined(block: nn.Module, below: Tensor, skip: Tensor) -> Tensor:
    """Return what a level of the decoder makes of the level below and of what it saw itself."""
    first, second = cast("nn.Sequential", block)
    joined = first(below, skip)
    # Without gradients, its memory is free for the second convolution.
    del below, skip
    return second(joined)


class Convolution(nn.Sequential):
    """A convolution, its normalisation if any, ReLU and dropout; the last two are done in one."""

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, out, X, Y, Z) of (B, in, X, Y, Z)."""
        return self._activated(self[0](image))

    def added(self, image: Tensor, shortcut: Tensor) -> Tensor:
        """Return what `forward` does, with `shortcut` (B, out, X, Y, Z) added before the ReLU."""
        return self._activated(self[0](image), shortcut)

    def _activated(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        _, *normalisations, _, last = self
        for normalisation in normalisations:
            x = normalisation(x)
        if shortcut is not None:
            x = x + shortcut
        dropout = cast("nn.Dropout", last)
        return relu_dropout(x, probability=dropout.p if dropout.training else 0.0)


class JoiningConvolution(Convolution):
    """A `Convolution` of what comes from the level below, enlarged, and what the level itself saw.

    Its layers, and so its weights, are those of a convolution of both as one volume.
    """

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, here, 2 X, 2 Y, 2 Z) of (B, below, X, Y, Z) and (B, here, 2 X, 2 Y, 2 Z)."""
        joining = cast("nn.Conv3d", self[0])
        return self._activated(
            up_convolution(below, skip, weight=joining.weight, bias=joining.bias)
        )


class ResidualBlock(nn.Module):
    """Two convolutions that are added to what they get, by a 1x1x1 convolution where narrower.

    The last ReLU and dropout come after the sum.
    """

    def __init__(
        self, num_in: int, num_out: int, *, kernel_size: int, dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"kernel_size": kernel_size, "dropout": dropout, "norm": norm}
        self.first = convolution(num_in, num_out, **options)
        self.second = convolution(num_out, num_out, **options)
        self.shortcut: nn.Module = nn.Identity()
        if num_in != num_out:
            self.shortcut = nn.Conv3d(num_in, num_out, kernel_size=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, out, X, Y, Z) of (B, in, X, Y, Z)."""
        return self.second.added(self.first(image), self.shortcut(image))


def convolution(
    num_in: int,
    num_out: int,
    *,
    kernel_size: int,
    dropout: float,
    norm: Norm,
    kind: type[Convolution] = Convolution,
) -> Convolution:
    """Return one convolution that keeps the size, its normalisation if any, ReLU and dropout."""
    layers: list[nn.Module] = [
        # A normalisation subtracts the mean, and with it any bias.
        SameConv3d(num_in, num_out, kernel_size, bias=norm is None)
    ]
    if norm == "instance":
        layers.append(InstanceNorm(num_out))
    # Keras' Dropout drops single values; torch's Dropout3d would drop whole channels.
    layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return kind(*layers)


def initialise_like_keras(module: nn.Module) -> None:
    """Give a convolution the weights Keras starts with: Glorot-uniform kernel, zero bias.

    The kernel is drawn from [-limit, limit] with limit = sqrt(6 / (fan_in + fan_out)), where a fan
    is the kernel's volume times the channels on that side (Glorot and Bengio, 2010).
    """
    if isinstance(module, nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; found {value!r}")


def _check_deep_supervision(deep_supervision: int, *, num_levels: int) -> None:
    most = max(num_levels - 2, 0)
    if not isinstance(deep_supervision, int) or not 0 <= deep_supervision <= most:
        raise ValueError(
            f"deep_supervision must be 0 to {most}, the levels between the top and the bottom of "
            f"{num_levels}; found {deep_supervision!r}"
        )


def _check_layers(*, kernel_size: int, dropout: float, norm: Norm) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size must be odd, so that the padding is the same on both sides; "
            f"found {kernel_size}"
        )
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability in [0, 1); found {dropout!r}")
    if norm not in (None, "instance"):
        raise ValueError(f'norm must be None or "instance"; found {norm!r}')
