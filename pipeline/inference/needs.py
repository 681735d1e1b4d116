"""How much memory inference is going to need, predicted without computing it, and the window."""

from __future__ import annotations

import copy
import weakref
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.errors import ResourceError

FLOAT_BYTES = 4
# What a process takes is more than its live tensors: kernels have workspaces, and normalisations
# copy what they get. From 150^3 voxels on, it was 1.04 times the prediction for the article's
# network and 1.20 to 1.27 times for instance and group normalisation (torch 2.13, CPU).
SAFETY = 1.4
# glibc takes blocks below 32 MB from a heap in which freed space is not always found again: in
# small windows, 20 to 180 MB more were seen than tensors of such a size explain.
HEAP_BYTES = 256 * 2**20
# Smaller windows save next to no memory, and what is near their faces sees too little around it:
# the article's network looks up to 67 voxels far.
MIN_WINDOW = 64


def predict_forward_bytes(network: nn.Module, *, image_shape: Sequence[int]) -> int:
    """Return the peak memory of one forward pass without gradients, in bytes.

    Counted are the tensors that are alive at the same time, with the image and the parameters, and
    not what the allocator and the kernels take beside: see `SAFETY` for how much that is.

    A copy of `network`, in the mode it is in, runs once on torch's meta device, where tensors have
    a shape and no content.

    Args:
        network: maps an image to logits.
        image_shape: (B, C, X, Y, Z), float32.
    """
    return _run_on_meta(network, image_shape)[0]


def choose_window(
    network: nn.Module, *, image_shape: Sequence[int], divisor: int, free_bytes: int
) -> tuple[int, int, int] | None:
    """Return the window in which a volume passes the network within `free_bytes`.

    None where the whole volume fits, else the largest window with equal edges (shorter where the
    volume is). Counted are the pass with `SAFETY`, and the volumes that `networks.VolumeInferer`
    keeps beside it; what the caller needs beyond is to be taken off `free_bytes` before.

    Args:
        network: maps an image to logits; in the mode in which it is going to run.
        image_shape: (B, C, X, Y, Z) of the preprocessed volume, its sizes multiples of the divisor.
        divisor: of the network; the window's edges are multiples of it.
        free_bytes: memory of the network's device that may be taken.

    Raises:
        ResourceError: not even windows of `MIN_WINDOW` voxels fit.
    """
    num_images, num_channels, *size = image_shape

    def window_of(edge: int) -> tuple[int, int, int]:
        x, y, z = (min(edge, length) for length in size)
        return x, y, z

    def needed_bytes(edge: int) -> int:
        peak, num_classes = _run_on_meta(network, (num_images, num_channels, *window_of(edge)))
        # The image twice (as it came; mirrored), the sum over windows with its weights, and the
        # sum over mirrorings.
        num_volumes = num_images * (2 * num_channels + 2 * num_classes) + 1
        return int(SAFETY * peak) + HEAP_BYTES + num_volumes * prod(size) * FLOAT_BYTES

    if needed_bytes(max(size)) <= free_bytes:
        return None
    smallest = _smallest_edge(divisor)
    edges = range(smallest, max(*size, smallest) + 1, divisor)
    num_fitting = bisect_left(edges, True, key=lambda edge: needed_bytes(edge) > free_bytes)
    if num_fitting == 0:
        raise ResourceError(
            f"not enough memory for a volume of {times(size)} voxels, not even in windows of "
            f"{times(window_of(smallest))}: needed {needed_bytes(smallest) / 1e9:.2f} GB, free "
            f"{free_bytes / 1e9:.2f} GB. End other programs, or use a machine with more memory"
        )
    return window_of(edges[num_fitting - 1])


def halved_window(
    window: Sequence[int] | None, *, size: Sequence[int], divisor: int
) -> tuple[int, int, int] | None:
    """Return the window to try where `window` (None: the whole volume) did not fit after all.

    Its longest edge is half as long, in multiples of the divisor and at least `MIN_WINDOW`; None
    where that is no smaller.

    Args:
        window: What did not fit, in voxels.
        size: (X, Y, Z) of the preprocessed volume.
        divisor: of the network.
    """
    tried = tuple(map(min, window or size, size))
    edge = max(max(tried) // 2 // divisor * divisor, _smallest_edge(divisor))
    x, y, z = (min(edge, length) for length in tried)
    return None if (x, y, z) == tried else (x, y, z)


def _smallest_edge(divisor: int) -> int:
    return -(-MIN_WINDOW // divisor) * divisor


class _LiveBytes(TorchDispatchMode):
    """Follows every storage that torch makes within, and keeps the peak of their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._total = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, and follow what it returns; its inputs are still alive then."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.follow(result)
        return results

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` until it is freed; views of it count with it."""
        storage = tensor.untyped_storage()
        # Torch keeps one Python object for a storage, for as long as the storage lives.
        key = id(storage)
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self._total += storage.nbytes()
        self.peak = max(self.peak, self._total)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._total -= self._live.pop(key)


def meta_twin(network: nn.Module) -> nn.Module:
    """Return a copy of `network` on torch's meta device, where tensors have no content.

    Content is not copied, not even for a moment: memory may be short.
    """
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor.detach().to("meta") for tensor in tensors})


def _run_on_meta(network: nn.Module, image_shape: Sequence[int]) -> tuple[int, int]:
    """Return the peak of the bytes alive during one pass, and the number of classes it gives."""
    twin = meta_twin(network)
    image = torch.empty(tuple(image_shape), device="meta")
    live = _LiveBytes()
    for tensor in (image, *twin.parameters(), *twin.buffers()):
        live.follow(tensor)
    with torch.no_grad(), live:
        logits = twin(image)
    return live.peak, logits.shape[1]


def times(size: Sequence[int]) -> str:
    """Return a size in words."""
    return " x ".join(str(length) for length in size)
