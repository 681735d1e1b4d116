"""C7: a whole volume through the article's network, against the same network in eager PyTorch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Comparison, compare
from networks import UNet3D, VolumeInferer
from pipeline.data.caching import free_memory_bytes
from pipeline.inference.needs import predict_forward_bytes
from pipeline.model.heap import (
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    NEVER_TRIM,
    give_back,
    keep_freed_memory,
    kept_bytes,
)

Result = TypeVar("Result")

SHAPE = (1, 4, 144, 224, 224)  # the article's, X, Y, Z as it crops them
TIME_GOAL, PEAK_GOAL = 1 / 2, 0.55
TOLERANCE = 1e-4  # of logits of order one
LEAST_AGREEMENT = 0.9999  # logits that nearly tie may change their order
# Where glibc's own rule ends up after the first large tensors are freed.
GLIBC_MMAP_THRESHOLD = 32 * 2**20
DATA = "random intensities, 4 x 144 x 224 x 224, the article's network with random weights"
MEMORY = "freed memory: reference as glibc does by default, ours kept as pipeline.infer does"


class EagerUNet(nn.Module):
    """The article's network as one writes it down: enlarge, join, convolve, activate, drop."""

    def __init__(
        self, *, in_channels: int = 4, out_channels: int = 4, dropout: float = 0.25
    ) -> None:
        super().__init__()
        filters = [16, 32, 64, 128]
        self.encoder = nn.ModuleList(
            self._double(above, here, dropout) for above, here in pairwise([in_channels, *filters])
        )
        self.bottom = self._double(filters[-1], filters[-1], dropout)
        self.decoder = nn.ModuleList(
            self._double(below + here, here, dropout) for below, here in pairwise(filters[::-1])
        )
        self.output = nn.Conv3d(filters[0], out_channels, 1)

    @staticmethod
    def _double(num_in: int, num_out: int, dropout: float) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (num_in, num_out):
            layers += [nn.Conv3d(channels, num_out, 3, padding=1), nn.ReLU(inplace=True)]
            layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of the image's size."""
        x, skips = image, []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        x = self.bottom(skips[-1])
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        return self.output(x)


def run(*, repeats: int) -> list[Comparison]:
    """Compare time and peak memory of a pass."""
    eager, network = same_weights(0)
    eager.eval()
    network.eval()
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    inferer = VolumeInferer(divisor=network.divisor)
    needed = predict_forward_bytes(network, image_shape=SHAPE)

    def reference() -> Tensor:
        with torch.no_grad():
            return eager(image)

    def ours() -> Tensor:
        with torch.no_grad():
            return inferer(image, network)

    threads = f"{torch.get_num_threads()} threads on both sides, float32"
    return [
        compare(
            "C7",
            "whole-volume forward pass",
            reference=("eager PyTorch", by_default(reference)),
            ours=("UNet3D, VolumeInferer", as_kept(ours, needed)),
            same=_same_logits,
            goal=TIME_GOAL,
            data=DATA,
            repeats=repeats,
            notes=(threads, MEMORY),
        ),
        compare(
            "C7",
            "peak memory of a whole-volume forward pass",
            reference=("eager PyTorch", emptied(by_default(reference))),
            ours=("UNet3D, VolumeInferer", emptied(as_kept(ours, needed))),
            same=_same_logits,
            goal=PEAK_GOAL,
            data=DATA,
            of="peak_bytes",
            repeats=repeats,
            notes=(threads, f"{MEMORY}; before each run, all of it is given back"),
        ),
    ]


def by_default(function: Callable[[], Result]) -> Callable[[], Result]:
    """Return `function` with large blocks given back to the kernel, as glibc does it unasked.

    Small ones are kept, which glibc does to a lesser degree: it would give back what ours kept.
    """
    library = ctypes.CDLL(None)

    def called() -> Result:
        library.mallopt(M_MMAP_THRESHOLD, GLIBC_MMAP_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
        return function()

    return called


def as_kept(function: Callable[[], Result], needed_bytes: int) -> Callable[[], Result]:
    """Return `function` with freed blocks kept, as this project does it where there is room."""

    def called() -> Result:
        # What was kept before is as good as free here.
        assert keep_freed_memory(needed_bytes, free_bytes=free_memory_bytes() + kept_bytes())
        return function()

    return called


def emptied(function: Callable[[], Result]) -> Callable[[], Result]:
    """Return `function` with nothing kept after it, so that the next one begins with nothing."""

    def called() -> Result:
        result = function()
        give_back()
        return result

    return called


def same_weights(seed: int, **settings: Any) -> tuple[EagerUNet, UNet3D]:
    """Return both networks with the weights of a seed."""
    torch.manual_seed(seed)
    ours, eager = UNet3D(**settings), EagerUNet(**settings)
    convolutions = [
        [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
        for network in (ours, eager)
    ]
    for layer, other in zip(*convolutions, strict=True):
        other.load_state_dict(layer.state_dict())
    return eager, ours


def _same_logits(reference: Tensor, ours: Tensor) -> str:
    difference = (reference - ours).abs().max().item()
    agreement = (reference.argmax(1) == ours.argmax(1)).double().mean().item()
    assert difference <= TOLERANCE, difference
    assert agreement >= LEAST_AGREEMENT, agreement
    largest = reference.abs().max().item()
    return (
        f"logits differ by at most {difference:.1e} (the largest is {largest:.2f}), the most "
        f"probable class is the same in {100 * agreement:.5f} % of the voxels"
    )
