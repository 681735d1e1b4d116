"""What a report is made of: a run's folder, a folder of masks, and the data list of these."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.datalist import Case, DataList
from pipeline.data.prediction_files import MASK_SUFFIX, OTHER_MASK_SUFFIX, mask_path
from pipeline.data.selection import chosen_cases
from pipeline.errors import DataError, SettingsError
from pipeline.training.run import METRICS
from pipeline.training.start import SETTINGS

# Where a run's own masks are looked for, in its folder.
MASKS = "masks"


@dataclass(frozen=True)
class Masked:
    """A case and its mask."""

    case: Case
    mask: Path


@dataclass(frozen=True)
class Source:
    """Where a report's content lies.

    Attributes:
        name: of what was given.
        run: folder of a run, with its settings and curves; None where there is none.
        masks: folder of masks; None where the run has none yet.
    """

    name: str
    run: Path | None
    masks: Path | None

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings; empty without a run."""
        if self.run is None:
            return {}
        content: dict[str, Any] = json.loads((self.run / SETTINGS).read_text())
        return content

    @property
    def epochs(self) -> list[dict[str, str]]:
        """The rows of the run's table of epochs; none without a run."""
        if self.run is None or not (self.run / METRICS).is_file():
            return []
        with (self.run / METRICS).open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def without_cases(self) -> str:
        """Why no case is shown, and what to do."""
        return (
            f"There are no masks in {self.name}/{MASKS}, so that no case is shown. Make them: "
            f"python -m pipeline.infer -m {self.name} LIST -o {self.name}/{MASKS}; then give LIST "
            "here too."
        )


def find_source(folder: Path) -> Source:
    """Return what `folder` is: a run, with its masks if there are some, or a folder of masks.

    Raises:
        SettingsError: It is neither.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder}: expected the folder of a run or of masks; found none.")
    name = folder.resolve().name
    if (folder / SETTINGS).is_file():
        masks = folder / MASKS
        return Source(name, folder, masks if _has_masks(masks) else None)
    if _has_masks(folder):
        return Source(name, None, folder)
    raise SettingsError(
        f"{folder}: expected a run ({SETTINGS}) or masks (<case>{MASK_SUFFIX}); found neither."
    )


def cases_of(
    source: Source, datalist: DataList, *, fold: int | None, ids: Sequence[str]
) -> tuple[Masked, ...]:
    """Return the cases of the list that have a mask, or those that were asked for.

    Raises:
        SettingsError: An id is not in the list, or is given twice.
        DataError: A case that was asked for has no mask, or none has one.
    """
    if source.masks is None:
        return ()
    cases = chosen_cases(datalist, fold=fold, ids=ids)
    masks = source.masks
    found = [(case, _mask_of(masks, case.id)) for case in cases]
    there = tuple(Masked(case, mask) for case, mask in found if mask is not None)
    missing = [case.id for case, mask in found if mask is None]
    if missing and (ids or fold is not None):
        raise DataError(
            f"{masks.name}: expected a mask of each case; found none of {', '.join(missing)}. "
            f"Make them: python -m pipeline.infer -m MODEL {datalist.path.name} -o {masks.name}"
        )
    if not there:
        raise DataError(
            f"{masks.name}: expected masks of cases of {datalist.path.name}; found none. "
            "Give the data list that they were made of."
        )
    return there


def _mask_of(folder: Path, case: str) -> Path | None:
    """Return the mask of a case, as this project or as others call it; None if there is none."""
    paths = (mask_path(folder, case), folder / f"{case}{OTHER_MASK_SUFFIX}")
    return next((path for path in paths if path.is_file()), None)


def _has_masks(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob(f"*{OTHER_MASK_SUFFIX}"))
