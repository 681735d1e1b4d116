"""A preprocessed case without its background: less memory, and to the last bit the same.

Around a brain all is 0, and after the min-max scaling there are few levels. So the box of what is
not 0 is enough, in 16-bit integers where they tell every value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from pipeline.data.boxes import bounding_box
from transforms.arrays import plain_tensor, with_meta_of

MAX_LEVEL = np.iinfo(np.int16).max
CPU = torch.device("cpu")
NUM_AXES = 4  # a channel first: what else there is among a case's tensors stays as it is


@dataclass(frozen=True, eq=False)
class CompactTensor:
    """What `compact` made of a tensor, and all that `restore` needs.

    Attributes:
        values: The box (C, x, y, z); int16 levels where there is a `divisor`.
        start: Where the box begins on X, Y and Z.
        shape: (C, X, Y, Z) of the whole.
        divisor: A float32 value is its level / divisor; None where `values` are the values.
        trace: A MetaTensor without voxels that has the metadata and the trace of operations; None
            for a tensor without them.
    """

    values: torch.Tensor
    start: tuple[int, ...]
    shape: tuple[int, ...]
    divisor: int | None
    trace: MetaTensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that the voxels take."""
        return self.values.nbytes

    @property
    def box(self) -> tuple[slice, ...]:
        """Where the values belong in the whole."""
        ends = zip(self.start, self.values.shape[1:], strict=True)
        return (slice(None), *(slice(start, start + size) for start, size in ends))

    def restore(self, device: torch.device = CPU) -> torch.Tensor:
        """Return the tensor (C, X, Y, Z) that this was made of, in memory of its own."""
        restored = self._whole() if device.type == "cpu" else self._whole_on(device)
        return restored if self.trace is None else with_meta_of(self.trace, restored)

    def _whole(self) -> torch.Tensor:
        values = self.values.numpy()
        # By NumPy, which asks for huge pages, and for zeros of the system: a quarter of the time of
        # torch.zeros. And in this thread alone, because others restore other cases meanwhile.
        whole = np.zeros(self.shape, dtype=np.float32 if self.divisor else values.dtype)
        inside = whole[self.box]
        if self.divisor:
            np.divide(values, np.float32(self.divisor), out=inside, casting="same_kind")
        else:
            inside[...] = values
        return torch.from_numpy(whole)

    def _whole_on(self, device: torch.device) -> torch.Tensor:
        # Only the box travels, as it is kept.
        values = self.values.to(device)
        if self.divisor:
            values = values.float() / self.divisor
        whole = torch.zeros(self.shape, dtype=values.dtype, device=device)
        whole[self.box] = values
        return whole


def compact(tensor: torch.Tensor, *, divisor: int = 1) -> CompactTensor:
    """Return `tensor` (C, X, Y, Z) as the box of its voxels that are not 0 in all channels.

    A float32 box is kept as 16-bit levels if each value is such an integer / `divisor`, which is
    tried out; else, and for other types, its values are kept as they are.
    """
    plain = plain_tensor(tensor).numpy()
    box = _box_of_content(plain)
    inside = plain[box]
    levels = _levels(inside, divisor) if plain.dtype == np.float32 else None
    # A copy, which does not keep the whole volume alive.
    values = np.array(inside, order="C") if levels is None else levels
    return CompactTensor(
        values=torch.from_numpy(values),
        start=tuple(part.start or 0 for part in box[1:]),
        shape=plain.shape,
        divisor=None if levels is None else divisor,
        trace=_trace_of(tensor),
    )


def compact_case(case: Mapping[str, Any], *, divisor: int = 1) -> dict[str, Any]:
    """Return `case` with its volumes made compact; everything else stays as it is."""
    return {
        key: compact(value, divisor=divisor)
        if isinstance(value, torch.Tensor) and value.ndim == NUM_AXES
        else value
        for key, value in case.items()
    }


def restore_case(case: Mapping[str, Any], *, device: torch.device = CPU) -> dict[str, Any]:
    """Return what `compact_case` was given, with its tensors on `device`."""
    restored = {
        key: value.restore(device) if isinstance(value, CompactTensor) else value
        for key, value in case.items()
    }
    return moved_case(restored, device=device)


def moved_case(case: Mapping[str, Any], *, device: torch.device) -> dict[str, Any]:
    """Return `case` with its tensors on `device`; those that are there already are not copied."""
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in case.items()
    }


def _trace_of(tensor: torch.Tensor) -> MetaTensor | None:
    trace = with_meta_of(tensor, torch.empty(0))
    return trace if isinstance(trace, MetaTensor) else None


def _box_of_content(plain: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds all but zeros; every channel in whole."""
    # By their bits, because -0.0 must come back as such.
    bits = np.bitwise_or.reduce(plain.view(f"u{plain.itemsize}"), axis=0)
    return slice(None), *bounding_box(bits != 0)


def _levels(inside: np.ndarray, divisor: int) -> np.ndarray | None:
    """Return the int16 levels of a float32 box; None where they would not tell every bit."""
    levels = np.empty(inside.shape, dtype=np.int16)
    if inside.size == 0:
        return levels
    for channel, out in zip(inside, levels, strict=True):
        with np.errstate(over="ignore"):
            scaled = np.multiply(channel, np.float32(divisor))
        np.rint(scaled, out=scaled)
        if not -MAX_LEVEL <= scaled.min() <= scaled.max() <= MAX_LEVEL:  # nor is NaN
            return None
        out[...] = scaled
        told = np.divide(out, np.float32(divisor), out=scaled)
        if not np.array_equal(told.view(np.int32), channel.view(np.int32)):
            return None
    return levels
