"""The data list: which cases there are, in which fold, and what their channels and labels mean."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.data.datalist_cases import Case, CaseReader
from pipeline.data.datalist_fields import Findings, PathRule, check_keys
from pipeline.data.datalist_header import HEADER_KEYS, IGNORED_KEYS, read_header
from pipeline.data.json_files import read_json
from pipeline.errors import DataError

# "test" is what the Decathlon calls its testing section.
SECTION_OF_KEY = {
    "training": "training",
    "validation": "validation",
    "testing": "testing",
    "test": "testing",
}


@dataclass(frozen=True)
class DataList:
    """Everything that a data list says.

    `labels` gives each label's voxel value, and the position of a label is its class index;
    `regions` gives the labels of each region.
    """

    path: Path
    name: str
    modalities: tuple[str, ...]
    labels: dict[str, int]
    regions: dict[str, tuple[str, ...]]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    testing: tuple[Case, ...]

    def header(self) -> dict[str, Any]:
        """Return what the list says about the dataset, as plain JSON without cases or paths."""
        return {
            "name": self.name,
            "modality": list(self.modalities),
            "labels": dict(self.labels),
            "regions": {region: list(names) for region, names in self.regions.items()},
        }

    def region_classes(self) -> dict[str, tuple[int, ...]]:
        """Return the class indices that make up each region."""
        return region_classes_of(self.header())

    def split(self, fold: int | None) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """Return the cases to train on and the cases to validate on; all of them are labelled.

        With a `fold`, the training section's cases of that fold validate and its other cases
        train. Without one, the labelled cases of the validation section validate; where there is
        no such section, it is fold 0. Raises `DataError` where either part would be empty.
        """
        if fold is None and self.validation:
            train, validate = self.training, _labelled(self.validation)
        else:
            fold = fold or 0
            validate = tuple(case for case in self.training if case.fold == fold)
            train = tuple(case for case in self.training if case.fold != fold)
        if not validate:
            raise DataError(f"{self.path}: {self._no_validation(fold)}")
        if not train:
            raise DataError(
                f"{self.path}: no labelled case is left to train on. "
                "Add cases to the training section, or folds with make_datalist --folds."
            )
        return train, validate

    def without_fold(self, fold: int | None) -> DataList:
        """Return a list of the labelled training cases alone, those of `fold` left out.

        Whoever is given it cannot look at a case of the fold. Raises `DataError` where no case is
        in the fold, or none is left.
        """
        if fold is None and self.training:
            return replace(self, validation=(), testing=())
        training, _ = self.split(fold)
        return replace(self, training=training, validation=(), testing=())

    def _no_validation(self, fold: int | None) -> str:
        folds = sorted({case.fold for case in self.training if case.fold is not None})
        there = f"The folds are {', '.join(map(str, folds))}." if folds else "It has no folds."
        if fold is None:
            return f"no case of the validation section is labelled; name a fold. {there}"
        return f"no case of the training section is in fold {fold}. {there}"


def region_classes_of(header: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the class indices of each region of a header, from a list or from a checkpoint."""
    index = {name: position for position, name in enumerate(header["labels"])}
    return {
        region: tuple(index[name] for name in names) for region, names in header["regions"].items()
    }


def read_datalist(path: Path, *, allow_outside_root: bool = False) -> DataList:
    """Read a data list in our own form (data_lists/README.md) or in MONAI's and the Decathlon's.

    The paths in it are relative to the folder of the list. A path that is absolute, or that leads
    out of this folder by ``..`` or by a symbolic link, is refused unless `allow_outside_root`.
    Whether the files exist is for the integrity check. Raises `DataError` with every problem.
    """
    path = Path(path)
    document = read_json(path)
    return parse_datalist(document, path=path, allow_outside_root=allow_outside_root)


def parse_datalist(document: Any, *, path: Path, allow_outside_root: bool) -> DataList:
    """Return the data list that the JSON value `document` describes, as if read from `path`."""
    findings = Findings(path)
    if not isinstance(document, dict):
        findings.wrong_type("", document, expected="an object with a key 'training'")
        findings.raise_if_any()
    check_keys(
        document,
        known=[*HEADER_KEYS, *IGNORED_KEYS, *SECTION_OF_KEY],
        where="",
        findings=findings,
    )
    header = read_header(document, default_name=path.stem, findings=findings)
    # Without a header nothing can be said about the cases that would not be a guess.
    findings.raise_if_any()
    rule = PathRule(Path(os.path.realpath(path.parent)), allow_outside_root=allow_outside_root)
    reader = CaseReader(header, rule=rule, findings=findings)
    sections: dict[str, list[Case]] = {section: [] for section in SECTION_OF_KEY.values()}
    for key, section in SECTION_OF_KEY.items():
        sections[section] += reader.read_section(key, document.get(key, []))
    findings.case = "data list"
    if not any(sections.values()):
        findings.missing("training", expected="at least one case in one of the sections")
    findings.raise_if_any()
    return DataList(
        path=path,
        name=header.name,
        modalities=header.modalities,
        labels=header.labels,
        regions=header.regions,
        **{section: tuple(cases) for section, cases in sections.items()},
    )


def _labelled(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.label is not None)
