"""In which form cases are kept: whole, without background, before the filters, or packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from monai.transforms import Compose, CopyItemsd

from pipeline.data.caching import item_bytes
from pipeline.data.compact import CPU, compact_case, moved_case, restore_case
from pipeline.data.datalist import Case
from pipeline.data.disk_cache import DiskCache
from pipeline.data.loading import LoadCase
from pipeline.data.packing import pack_case, unpack_case
from transforms.preprocessing import build_stored_and_live

FormName = Literal["whole", "ready", "compact", "packed"]
FORMS: dict[FormName, str] = {
    "whole": "as the network gets them",
    "ready": "without background, which is put back at each use",
    "compact": "filtered at each use",
    "packed": "packed, and unpacked and filtered at each use",
}
"""What becomes of a kept case at each use; the quicker form comes first, the smaller one last."""

REFERENCE = "reference"
# Brains differ in size, and only the first one has been measured.
SPREAD = 1.2


@dataclass(frozen=True)
class Form:
    """`keep` turns a `Case` into what is kept of it, and `read` that into the tensors."""

    keep: Callable[[Case], Any]
    read: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """What the first case says of all.

    Attributes:
        shape: Of the image that the network gets, (C, X, Y, Z).
        bytes_per_case: Of each form.
    """

    shape: tuple[int, ...]
    bytes_per_case: dict[FormName, int]

    def form(self, *, num_cases: int, budget_bytes: float) -> FormName:
        """Return the quickest form in which all cases fit; the smallest if they do in none."""
        for name, size in self.bytes_per_case.items():
            if num_cases * size * SPREAD <= budget_bytes:
                return name
        return "packed"


class Preparation:
    """From a `Case` to tensors, in two parts: what is done once, and what is done at each use.

    Filters turn few levels into many, and a resampling to a coarser grid many voxels into few: the
    first part ends where the first case takes less memory.

    Args:
        preprocessing: Settings of `build_preprocessing`.
        mask_nonfinite: See `LoadCase`.
    """

    def __init__(self, preprocessing: Mapping[str, Any], *, mask_nonfinite: bool) -> None:
        stored, live = build_stored_and_live(**preprocessing)
        self.once = Compose(
            [
                LoadCase(labels=True, mask_nonfinite=mask_nonfinite),
                CopyItemsd("label", names=REFERENCE),
                *stored.transforms,
            ]
        )
        self.each_time = live
        is_rounded = preprocessing["normalization"] == "minmax"
        decimals = preprocessing["decimals"] if is_rounded else None
        self.divisor = 10 ** (decimals or 0)
        self.settings = {**preprocessing, "mask_nonfinite": mask_nonfinite}
        self.disk: DiskCache | None = None

    def measure(self, case: Case) -> Measured:
        """Prepare `case`, and decide by it where the first part ends."""
        compact = self._once_compact(case)
        ready = self._at_use(compact)
        whole = compact_case(ready, divisor=self.divisor)
        if item_bytes(whole) <= item_bytes(compact):
            # Flat, because MONAI takes a chain within a chain for a random transform.
            self.once = Compose([*self.once.transforms, *self.each_time.transforms])
            self.each_time = Compose([])
            compact = whole
        return Measured(
            shape=tuple(ready["image"].shape),
            bytes_per_case={
                "whole": item_bytes(ready),
                "ready": item_bytes(whole),
                "compact": item_bytes(compact),
                "packed": item_bytes(pack_case(compact)),
            },
        )

    def use_disk(self, folder: Path) -> DiskCache:
        """Take the first part of every case from a file in `folder`, from now on; return these."""
        settings = {**self.settings, "steps": len(self.once.transforms)}
        self.disk = DiskCache(folder, prepare=self._once_compact, settings=settings)
        return self.disk

    def ready(self, case: Case, *, reference: bool, device: torch.device = CPU) -> dict[str, Any]:
        """Return what the network gets of `case`: image, label and case.

        With `reference`, also the label on its own grid. What is done at each use is done on
        `device`, and the tensors stay there.
        """
        if self.disk is not None:
            return self._at_use(self.disk(case), reference=reference, device=device)
        once = _chosen(self.once(case), reference=reference)
        return self.each_time(moved_case(once, device=device))

    def form(self, name: FormName, *, reference: bool, device: torch.device = CPU) -> Form:
        """Return how a case is kept in the form `name`, and read; the rest as in `ready`."""
        # No closures, which could not be sent to workers that are not forked.
        read_compact = partial(self._at_use, reference=reference, device=device)
        forms: dict[FormName, Form] = {
            "whole": Form(
                partial(self._whole, reference=reference), partial(moved_case, device=device)
            ),
            "ready": Form(
                partial(self._ready_compact, reference=reference),
                partial(restore_case, device=device),
            ),
            "compact": Form(partial(self._compact, reference=reference), read_compact),
            "packed": Form(
                self._packed, partial(self._unpacked, reference=reference, device=device)
            ),
        }
        return forms[name]

    def _whole(self, case: Case, *, reference: bool) -> dict[str, Any]:
        ready = self.ready(case, reference=reference)
        return {key: _alone(value) for key, value in ready.items()}

    def _ready_compact(self, case: Case, *, reference: bool) -> dict[str, Any]:
        return compact_case(self.ready(case, reference=reference), divisor=self.divisor)

    def _compact(self, case: Case, *, reference: bool) -> dict[str, Any]:
        compact = self._once_compact(case) if self.disk is None else self.disk(case)
        return _chosen(compact, reference=reference)

    def _packed(self, case: Case) -> bytes:
        if self.disk is None:
            return pack_case(self._once_compact(case))
        return self.disk.packed(case)

    def _unpacked(self, packed: bytes, *, reference: bool, device: torch.device) -> dict[str, Any]:
        return self._at_use(unpack_case(packed), reference=reference, device=device)

    def _once_compact(self, case: Case) -> dict[str, Any]:
        return compact_case(self.once(case), divisor=self.divisor)

    def _at_use(
        self, compact: Mapping[str, Any], *, reference: bool = True, device: torch.device = CPU
    ) -> dict[str, Any]:
        chosen = _chosen(compact, reference=reference)
        return self.each_time(restore_case(chosen, device=device))


def _alone(value: Any) -> Any:
    """Return a tensor in memory that holds nothing else, such as what it was cut from."""
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone(memory_format=torch.contiguous_format)
    return value


def _chosen(case: Mapping[str, Any], *, reference: bool) -> dict[str, Any]:
    """Return `case` without what is only wanted where predictions are compared with it."""
    return {key: value for key, value in case.items() if reference or key != REFERENCE}
