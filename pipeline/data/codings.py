"""Which of BraTS's two numberings of the labels a mask uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.data.discovery import FoundCase
from pipeline.data.naming import LABEL_NAMES
from pipeline.data.nifti import read_volume
from pipeline.errors import DataError, Problem

# Values of LABEL_NAMES. BraTS left 3 out from 2017 on, and has used it again since 2023. The first
# one is assumed where no mask of a dataset can tell.
NUMBERINGS: tuple[tuple[int, ...], ...] = ((0, 1, 2, 4), (0, 1, 2, 3))


@dataclass(frozen=True)
class Codings:
    """The numbering of each case's mask (None where it fits both), and the most frequent one."""

    of_case: dict[str, tuple[int, ...] | None]
    majority: tuple[int, ...]

    def labels(self) -> dict[str, int]:
        """Return the header's labels: the values of the most frequent numbering."""
        return dict(zip(LABEL_NAMES, self.majority, strict=True))

    def override(self, case: str) -> dict[str, int]:
        """Return the labels whose values differ from the header's in this case's mask."""
        values = self.of_case[case] or self.majority
        own = dict(zip(LABEL_NAMES, values, strict=True))
        return {name: value for name, value in own.items() if value != self.labels()[name]}


def find_codings(cases: Iterable[FoundCase], *, progress: bool) -> Codings:
    """Read the mask of every labelled case and find its numbering.

    `progress` shows a bar, on a terminal. Raises `DataError` with every mask that cannot be read or
    that fits neither numbering.
    """
    masks = {case.id: case.label for case in cases if case.label}
    problems: list[Problem] = []
    of_case: dict[str, tuple[int, ...] | None] = {}
    bar = tqdm(masks.items(), desc="Reading masks", unit="mask", disable=None if progress else True)
    for case, path in bar:
        try:
            of_case[case] = _coding_of(path)
        except DataError as error:
            problems += [replace(problem, case=case) for problem in error.problems]
    if problems:
        raise DataError.of(*problems)
    told = list(of_case.values())
    return Codings(of_case, majority=max(NUMBERINGS, key=told.count))


def _coding_of(path: Path) -> tuple[int, ...] | None:
    """Return the numbering that the values of the mask fit; None if they fit both."""
    volume, _ = read_volume(path, dtype=np.uint8)
    counts = np.bincount(volume.ravel(order="K"))
    values = set(np.flatnonzero(counts).tolist())
    fitting = [numbering for numbering in NUMBERINGS if values <= set(numbering)]
    if not fitting:
        raise DataError.of(_unknown_values(path, {value: int(counts[value]) for value in values}))
    return fitting[0] if len(fitting) == 1 else None


def _unknown_values(path: Path, counts: dict[int, int]) -> Problem:
    return Problem(
        case="",
        kind="label-values",
        file=str(path),
        expected=" or ".join(str(numbering) for numbering in NUMBERINGS),
        found=", ".join(f"{value} ({counts[value]} voxels)" for value in sorted(counts)),
        remedy="Labels of another kind (BraTS 2024 adds a resection cavity) need a list whose "
        "header says so: see data_lists/README.md.",
    )
