"""C7: a whole volume through the article's network, against the same network in eager PyTorch."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Comparison, compare
from networks import UNet3D, VolumeInferer
from pipeline.model.heap import (
    KERNEL_HUGE_PAGES,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    settle_memory,
)

Result = TypeVar("Result")

SHAPE = (1, 4, 144, 224, 224)  # the article's, X, Y, Z as it crops them
TIME_GOAL, PEAK_GOAL = 1 / 2, 0.55
TOLERANCE = 1e-4  # of logits of order one
LEAST_AGREEMENT = 0.9999  # logits that nearly tie may change their order
# Where glibc's own rule ends up after the first large tensors are freed.
GLIBC_MMAP_THRESHOLD, GLIBC_TRIM_THRESHOLD = 32 * 2**20, 64 * 2**20
PR_SET_THP_DISABLE = 41


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
    """Compare time and peak memory of the same passes."""
    return in_own_process(_compare, repeats)


def in_own_process(function: Callable[[int], Result], repeats: int) -> Result:
    """Call `function` in a new process, in which torch has taken no memory before it is settled."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=settle_memory) as pool:
        return pool.submit(function, repeats).result()


def by_default(function: Callable[[], Result]) -> Callable[[], Result]:
    """Return `function` with memory as glibc and torch take it unasked."""
    library = ctypes.CDLL(None)

    def called() -> Result:
        library.mallopt(M_MMAP_THRESHOLD, GLIBC_MMAP_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, GLIBC_TRIM_THRESHOLD)
        # Unasked, tensors are in huge pages where the kernel always gives them.
        library.prctl(PR_SET_THP_DISABLE, "[always]" not in KERNEL_HUGE_PAGES.read_text(), 0, 0, 0)
        return function()

    return called


def as_settled(function: Callable[[], Result]) -> Callable[[], Result]:
    """Return `function` with memory as this project takes it."""
    library = ctypes.CDLL(None)

    def called() -> Result:
        settle_memory()
        library.prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)
        return function()

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


def _compare(repeats: int) -> list[Comparison]:
    eager, ours = same_weights(0)
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    eager.eval()
    inferer, network = VolumeInferer(divisor=ours.divisor), ours.eval()
    seconds = compare(
        "C7",
        "whole-volume forward pass",
        reference=("eager PyTorch", by_default(torch.no_grad()(lambda: eager(image)))),
        ours=(
            "UNet3D by VolumeInferer",
            as_settled(torch.no_grad()(lambda: inferer(image, network))),
        ),
        same=_same_logits,
        goal=TIME_GOAL,
        data="random intensities, 4 x 144 x 224 x 224, the article's network with random weights",
        repeats=repeats,
        notes=(
            f"{torch.get_num_threads()} threads on both sides, float32",
            "reference: memory as glibc and torch take it unasked; ours: as pipeline.infer says",
        ),
    )
    peak = replace(
        seconds, what="peak memory of it", goal=PEAK_GOAL, of="peak_bytes", notes=("the same runs",)
    )
    return [seconds, peak]


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
