"""What a cross-validation is: its list, folds and settings, and the folder that states them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config import Settings, build_settings, differences
from pipeline.data.datalist import Case, DataList
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json
from pipeline.errors import SettingsError
from pipeline.model.checkpoint import BEST
from pipeline.training.start import SETTINGS, fingerprint

STATEMENT = "crossval.json"
MASKS, SCORES, DIGESTS = "masks", "scores", "checked.json"
REPORT = "report.html"
# A fold is not looked at before its masks are made, and these are cleaned as the others say.
FORCED: dict[str, Any] = {
    "fold": None,
    "validation": {"every_epochs": None},
    "inference": {"min_et_volume_ml": None, "min_component_ml": None},
}
# What may differ when a command is repeated, since it has no effect on the numbers.
HARMLESS = (
    "loading.cache_memory_fraction",
    "loading.num_workers",
    "checkpoint.",
    "validation.num_pictures",
)
REMEDY = "Repeat the command as it was, or choose another --output-dir."


@dataclass(frozen=True)
class Plan:
    """One cross-validation.

    Attributes:
        folder: Where everything goes.
        datalist: Whose training section has the folds.
        folds: Those that are predicted, at least two, ascending.
        settings: Of every training; without a fold and without validation.
        probabilities: Whether the probability of each class is written.
        allow_outside_root: As the list was read.
        cache_dir: Folder of preprocessed cases that all trainings share.
    """

    folder: Path
    datalist: DataList
    folds: tuple[int, ...]
    settings: Settings
    probabilities: bool = True
    allow_outside_root: bool = False
    cache_dir: Path | None = None

    def run_folder(self, fold: int) -> Path:
        """Return the folder of the run that is trained on all folds but this one."""
        return self.folder / f"fold_{fold}"

    def raw_masks(self, fold: int) -> Path:
        """Return the folder of what that run says of this fold's cases, not yet cleaned."""
        return self.run_folder(fold) / MASKS

    @property
    def masks(self) -> Path:
        """The folder of the out-of-fold masks of all folds, cleaned."""
        return self.folder / MASKS

    @property
    def checkpoints(self) -> list[Path]:
        """The models, in the order of the folds."""
        return [self.run_folder(fold) / BEST for fold in self.folds]

    @cached_property
    def cases(self) -> dict[int, tuple[Case, ...]]:
        """The cases of each fold, which are predicted by the run that has not seen them.

        Raises:
            DataError: A fold has no case, or there is none outside it.
        """
        return {fold: self.datalist.split(fold)[1] for fold in self.folds}

    @property
    def all_cases(self) -> tuple[Case, ...]:
        """The cases of all folds."""
        return tuple(case for cases in self.cases.values() for case in cases)

    def statement(self) -> dict[str, Any]:
        """Return what decides the results, as plain JSON values without paths."""
        header = self.datalist.header()
        return {
            "data_list": {
                "file": self.datalist.path.name,
                **header,
                "fingerprints": {
                    str(fold): fingerprint(header, *self.datalist.split(fold))
                    for fold in self.folds
                },
            },
            "folds": list(self.folds),
            "probabilities": self.probabilities,
            "settings": self.settings.model_dump(mode="json"),
        }


def folds_of(datalist: DataList, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Return the folds of the training section, or those that are wanted, ascending.

    Raises:
        SettingsError: They are fewer than two, or one is wanted that is not there.
    """
    there = sorted({case.fold for case in datalist.training if case.fold is not None})
    name = datalist.path.name
    if len(there) < 2:
        raise SettingsError(
            f"{name}: expected at least two folds in the training section; found {len(there)}. "
            "Deal its cases into folds: python -m pipeline.make_datalist ... --folds 5"
        )
    folds = sorted(set(there if wanted is None else wanted))
    unknown = [fold for fold in folds if fold not in there]
    if unknown or len(folds) < 2:
        raise SettingsError(
            f"--folds: expected at least two of {', '.join(map(str, there))}, the folds of {name}; "
            f"found {', '.join(map(str, folds))}."
        )
    return tuple(folds)


def require_free(assigned: Mapping[str, Any]) -> None:
    """Refuse settings from the command line that a cross-validation decides itself.

    Raises:
        SettingsError: There is one.
    """
    for stage, forced in FORCED.items():
        said = assigned.get(stage)
        names = [f"{stage}.{name}" for name in forced if name in said] if forced and said else []
        if names or (forced is None and said is not None):
            raise SettingsError(
                f"--set {', '.join(names) or stage}: a cross-validation decides this itself. Leave "
                "it out."
            )


def claim_folder(plan: Plan) -> None:
    """Let the folder, which is there and locked, hold this cross-validation and no other.

    Raises:
        SettingsError: It holds another one; what differs is named.
        ResourceError: It cannot be written to.
    """
    path = plan.folder / STATEMENT
    statement = plan.statement()
    if path.is_file():
        _require_same(plan.folder.name, read_json(path), statement)
    elif any(plan.folder.glob("fold_*")):
        raise SettingsError(
            f"{plan.folder.name}: expected an empty folder, or a cross-validation with its "
            f"{STATEMENT}; found folds without it. Choose another --output-dir."
        )
    replace_file(path, json_bytes(statement))
    # Under this name, because the report looks for a run's settings there.
    replace_file(plan.folder / SETTINGS, json_bytes(statement["settings"]))


def _require_same(name: str, stored: Any, statement: dict[str, Any]) -> None:
    known = stored if isinstance(stored, dict) and set(stored) == set(statement) else {}
    if not known:
        raise SettingsError(f"{name}: {STATEMENT} is not of this version. {REMEDY}")
    for key in ("folds", "probabilities"):
        if known[key] != statement[key]:
            raise SettingsError(
                f"{name}: holds a cross-validation with {key} {known[key]}; found "
                f"{statement[key]}. {REMEDY}"
            )
    if known["data_list"] != statement["data_list"]:
        raise SettingsError(
            f"{name}: holds a cross-validation of {known['data_list'].get('file')} as it was then; "
            f"found other cases, folds or files. {REMEDY}"
        )
    changed = [
        change
        for change in differences(
            build_settings(known["settings"]), build_settings(statement["settings"])
        )
        if not change.startswith(HARMLESS)
    ]
    if changed:
        raise SettingsError(
            f"{name}: holds a cross-validation with other settings: {'; '.join(changed)}. {REMEDY}"
        )
