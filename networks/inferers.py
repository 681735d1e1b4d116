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

SPATIAL_AXES = (2, 3, 4)  # of (B, C, X, Y, Z)
# No mirroring, each axis, each pair of axes, all three: eight, each its own inverse.
MIRRORINGS = [axes for count in range(4) for axes in combinations(SPATIAL_AXES, count)]

Forward = Callable[[Tensor], Tensor]


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

    Whether gradients are recorded is the caller's business, as is ``network.eval()``.

    Args:
        window: edge of the windows in voxels, one number or one per axis; rounded up to a multiple
            of `divisor`, and cut to the volume where it is larger. None is the whole volume.
        overlap: share of a window, in [0, 1), that the next one covers again. The step between
            windows is rounded to a multiple of `divisor`, at least one.
        flips: average the softmax probabilities over all 8 mirrorings of X, Y and Z.
        divisor: what X, Y and Z must be multiples of.

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

        def forward(part: Tensor) -> Tensor:
            return network(part.contiguous(memory_format=layout), *args, **kwargs)

        if self.flips:
            return self._mirrored(image, forward)
        return self._blended(image, forward)

    def _check_size(self, image: Tensor) -> None:
        size = tuple(image.shape[2:])
        if len(size) != 3 or any(n == 0 or n % self.divisor for n in size):
            raise ValueError(
                f"expected a volume (B, C, X, Y, Z) whose X, Y and Z are multiples of the divisor "
                f"{self.divisor}; found the size {size}. Pad it in preprocessing"
            )

    def _blended(self, image: Tensor, forward: Forward) -> Tensor:
        """Return the logits of one orientation of the volume."""
        size = image.shape[2:]
        if self.window is None:
            return forward(image)
        window = tuple(min(edge, length) for edge, length in zip(self.window, size, strict=True))
        if window == tuple(size):
            return forward(image)
        return sliding_window_inference(  # type: ignore[return-value]  # one tensor in, one out
            image,
            roi_size=window,
            sw_batch_size=1,
            predictor=forward,
            overlap=[self._monai_overlap(edge) for edge in window],
            mode="gaussian",
        )

    def _monai_overlap(self, edge: int) -> float:
        """Return the overlap from which MONAI's `int(edge * (1 - overlap))` makes our step.

        The last window is moved back to end with the volume; as window and volume are multiples of
        the divisor, its start is one too.
        """
        step = max(round(edge * (1 - self.overlap) / self.divisor), 1) * self.divisor
        # Half a voxel more, which the truncation takes off again: a bare 1 - step / edge can come
        # out a hair too small.
        return max(1 - (step + 0.5) / edge, 0.0)

    def _mirrored(self, image: Tensor, forward: Forward) -> Tensor:
        """Return the logarithm of the mean probabilities over all mirrorings of the volume."""

        def probabilities(axes: tuple[int, ...]) -> Tensor:
            logits = self._blended(image.flip(axes), forward).flip(axes)
            return torch.softmax(logits, dim=1, dtype=torch.float32)

        total = probabilities(MIRRORINGS[0])
        for axes in MIRRORINGS[1:]:
            total += probabilities(axes)
        # A probability that underflowed to 0 keeps a finite logarithm.
        return total.div_(len(MIRRORINGS)).clamp_(min=torch.finfo(torch.float32).tiny).log_()


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
