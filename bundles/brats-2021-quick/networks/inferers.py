"""How a network is applied to a volume: in one pass or in windows, with or without mirroring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from torch import Tensor, nn

from networks.layout import memory_format_of
from networks.regions import Content, Region, cut, mirrored

SPATIAL_AXES = (2, 3, 4)  # of (B, C, X, Y, Z)
# No mirroring, each axis, each pair of axes, all three: eight, each its own inverse.
MIRRORINGS = [axes for count in range(4) for axes in combinations(SPATIAL_AXES, count)]

# By so much the background's logit is above the others': exp(-100) is 0 beside 1.
CERTAIN = 100.0

Forward = Callable[[Tensor, Content | None], Tensor]


class VolumeInferer(Inferer):
    """Applies a network to a whole volume, and returns logits of the volume's own size.

    Without `window` the volume passes the network at once. With it, MONAI's
    `sliding_window_inference` blends the logits of overlapping windows by Gaussian weights. Windows
    start at multiples of `divisor` only: a network that halves its image n times commutes with
    shifts by multiples of 2 ** n, and with no others, so that only then windows and the whole
    volume agree away from the windows' faces.

    On a CPU the parameters of an `nn.Module` are put once, in place, into the layout that
    `networks.layout` says, and so is its input: faster, and the same values up to rounding. Who
    wants the same mask bit for bit has to use this class on both sides. On other devices nothing is
    changed.

    With `content_only`, what lies outside the box of the image's content is background, and a
    `UNet3D` does not compute it; inside, nothing changes. The image's background is what its first
    voxel is, in all channels.

    Whether gradients are recorded is the caller's business, as is ``network.eval()``.

    Args:
        window: edge of the windows in voxels, one number or one per axis; rounded up to a multiple
            of `divisor`, and cut to the volume where it is larger. None is the whole volume.
        overlap: share of a window, in [0, 1), that the next one covers again. The step between
            windows is rounded to a multiple of `divisor`, at least one.
        flips: average the softmax probabilities over all 8 mirrorings of X, Y and Z.
        divisor: what X, Y and Z must be multiples of.
        content_only: the class of all that is not in the content's box is 0.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        window: Sequence[int] | int | None = None,
        overlap: float = 0.5,
        flips: bool = False,
        divisor: int = 1,
        content_only: bool = False,
    ) -> None:
        super().__init__()
        if divisor < 1:
            raise ValueError(f"divisor must be at least 1; found {divisor}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be a share of the window in [0, 1); found {overlap}")
        self.window = None if window is None else _checked_window(window, divisor)
        self.overlap = overlap
        self.flips = flips
        self.divisor = divisor
        self.content_only = content_only

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the logits (B, K, X, Y, Z) of `inputs` (B, C, X, Y, Z), a plain tensor.

        With `flips` they are the logarithm of the mean probabilities, float32, whose softmax gives
        the mean back.

        Args:
            inputs: the volume; a MetaTensor's metadata is left aside, as it slows every layer down.
            network: returns logits of its input's size; `args` and `kwargs` are passed on to it.

        Raises:
            ValueError: X, Y or Z is not a multiple of the divisor.
        """
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        self._check_size(image)
        layout = _prepare_layout(network, image.device)

        def forward(part: Tensor, content: Content | None) -> Tensor:
            part = part.contiguous(memory_format=layout)
            return forward_content(network, part, content, *args, **kwargs)

        content = content_of(image) if self.content_only else None
        run = self._mirrored if self.flips else self._blended
        logits = run(image, forward, content)
        if content is None:
            return logits
        return among_background(logits, content.box, size=image.shape[2:])

    def _check_size(self, image: Tensor) -> None:
        size = tuple(image.shape[2:])
        if len(size) != 3 or any(n == 0 or n % self.divisor for n in size):
            raise ValueError(
                f"expected a volume (B, C, X, Y, Z) whose X, Y and Z are multiples of the divisor "
                f"{self.divisor}; found the size {size}. Pad it in preprocessing"
            )

    def _blended(self, image: Tensor, forward: Forward, content: Content | None) -> Tensor:
        """Return the logits of one orientation of the volume, or of its content alone."""
        size = image.shape[2:]
        if self.window is None:
            return forward(image, content)
        window = tuple(min(edge, length) for edge, length in zip(self.window, size, strict=True))
        if window == tuple(size):
            return forward(image, content)
        logits: Tensor = sliding_window_inference(  # type: ignore[assignment]  # one in, one out
            image,
            roi_size=window,
            sw_batch_size=1,
            predictor=lambda part: forward(part, None),
            overlap=[self._monai_overlap(edge) for edge in window],
            mode="gaussian",
        )
        return logits if content is None else cut(logits, content.box)

    def _monai_overlap(self, edge: int) -> float:
        """Return the overlap from which MONAI's `int(edge * (1 - overlap))` makes our step.

        The last window is moved back to end with the volume; as window and volume are multiples of
        the divisor, its start is one too.
        """
        step = max(round(edge * (1 - self.overlap) / self.divisor), 1) * self.divisor
        # Half a voxel more, which the truncation takes off again: a bare 1 - step / edge can come
        # out a hair too small.
        return max(1 - (step + 0.5) / edge, 0.0)

    def _mirrored(self, image: Tensor, forward: Forward, content: Content | None) -> Tensor:
        """Return the logarithm of the mean probabilities over all mirrorings of the volume."""

        def probabilities(axes: tuple[int, ...]) -> Tensor:
            there = None if content is None else mirrored(content, axes, size=image.shape[2:])
            logits = self._blended(image.flip(axes), forward, there).flip(axes)
            return torch.softmax(logits, dim=1, dtype=torch.float32)

        total = probabilities(MIRRORINGS[0])
        for axes in MIRRORINGS[1:]:
            total += probabilities(axes)
        # A probability that underflowed to 0 keeps a finite logarithm.
        return total.div_(len(MIRRORINGS)).clamp_(min=torch.finfo(torch.float32).tiny).log_()


def forward_content(
    network: Callable[..., Tensor],
    image: Tensor,
    content: Content | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Return the logits of `image` (B, C, X, Y, Z) in the box of its content, or everywhere.

    Args:
        network: returns logits of its input's size; one that computes less for a part of it, such
            as `UNet3D`, has a true attribute `takes_content`.
        image: the whole volume.
        content: of the image, or None for the logits of all of it.
        args, kwargs: are passed on to the network.
    """
    if content is None:
        return network(image, *args, **kwargs)
    if getattr(network, "takes_content", False):
        return network(image, content, *args, **kwargs)
    return cut(network(image, *args, **kwargs), content.box)


def content_of(image: Tensor) -> Content:
    """Return the box of the voxels of `image` (B, C, X, Y, Z) that are not as the first one is.

    It holds the first voxel alone where all are alike.
    """
    background = image[:, :, :1, :1, :1]
    differs = (image != background).flatten(0, 1).any(dim=0)
    planes, rows = differs.any(dim=2), differs.any(dim=1).any(dim=0)
    box = (_span(planes.any(dim=1)), _span(planes.any(dim=0)), _span(rows))
    return Content(box, background)


def _span(present: Tensor) -> slice:
    """Return the slice from the first to the last True."""
    found = present.nonzero()
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 1)


def among_background(logits: Tensor, region: Region, *, size: Sequence[int]) -> Tensor:
    """Return (B, K, X, Y, Z): `logits` in their `region`, and beyond it certainty of class 0."""
    batch, num_classes = logits.shape[:2]
    whole = logits.new_full((batch, num_classes, *size), -CERTAIN)
    whole[:, 0] = 0
    x, y, z = region
    whole[:, :, x, y, z] = logits
    return whole


def _checked_window(window: Sequence[int] | int, divisor: int) -> tuple[int, ...]:
    """Return one edge per axis, rounded up to multiples of `divisor`."""
    edges = (window,) * 3 if isinstance(window, int) else tuple(window)
    if len(edges) != 3 or any(edge < 1 for edge in edges):
        raise ValueError(
            f"window must be one number of voxels of at least 1, or one for each of X, Y and Z; "
            f"found {window!r}"
        )
    return tuple(-(-edge // divisor) * divisor for edge in edges)


def _prepare_layout(network: object, device: torch.device) -> torch.memory_format:
    """Return the memory layout that `network` takes on `device`, having brought it into that."""
    layout = memory_format_of(network, device)
    if layout == torch.contiguous_format or not isinstance(network, nn.Module):
        return torch.contiguous_format
    kernels = (parameter for parameter in network.parameters() if parameter.dim() == 5)
    if not all(kernel.is_contiguous(memory_format=layout) for kernel in kernels):
        # Parameters made in inference mode could never be trained again.
        with torch.inference_mode(False):
            network.to(memory_format=layout)  # type: ignore[call-overload]
    return layout
