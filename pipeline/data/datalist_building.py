"""Building a data list from the cases that were found: header, folds, overrides, relative paths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.codings import Codings
from pipeline.data.datalist import parse_datalist
from pipeline.data.discovery import MASK, FoundCase
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes
from pipeline.data.naming import MODALITY_SPELLINGS, REGIONS
from pipeline.errors import DataError, ResourceError, SettingsError


def build_document(
    cases: Sequence[FoundCase],
    *,
    codings: Codings,
    folds: Mapping[str, int],
    name: str,
    folder: Path,
) -> dict[str, Any]:
    """Return the data list of `cases` as plain JSON, with paths relative to `folder`.

    The labelled cases become the training section, with their fold of `folds`; the others become
    the testing section. Cases stand in the order of their ids.
    """
    training: list[dict[str, Any]] = []
    testing: list[dict[str, Any]] = []
    for case in sorted(cases, key=lambda case: case.id):
        entry: dict[str, Any] = {"case": case.id, "subject": case.subject}
        if case.label:
            entry["fold"] = folds[case.id]
        entry |= {key: _relative(path, folder) for key, path in case.images.items()}
        if case.label:
            entry[MASK] = _relative(case.label, folder)
            override = codings.override(case.id)
            entry |= {"labels": override} if override else {}
        (training if case.label else testing).append(entry)
    return {
        "name": name,
        "modality": list(MODALITY_SPELLINGS),
        "labels": codings.labels(),
        "regions": {region: list(names) for region, names in REGIONS.items()},
        "training": training,
        "testing": testing,
    }


def stays_inside(document: dict[str, Any], *, path: Path) -> bool:
    """Tell whether every file of the list lies in the folder of `path`, where it will be written.

    Raises `DataError` where the list could not be read back at all, for instance because of an id
    that cannot be the name of a file.
    """
    parse_datalist(document, path=path, allow_outside_root=True)
    try:
        parse_datalist(document, path=path, allow_outside_root=False)
    except DataError:  # the only rule that the first line does not apply
        return False
    return True


def write_document(document: dict[str, Any], path: Path, *, force: bool) -> bool:
    """Write the list to `path` in one step; return False where it is there already, unchanged.

    Raises `SettingsError` where another file is there and `force` is not set, and `ResourceError`
    where nothing can be written.
    """
    content = json_bytes(document)
    if path.is_dir():
        raise SettingsError(f"{path} is a folder: name the file, for example {path}/datalist.json.")
    try:
        if path.exists() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}.") from error
    if path.exists() and not force:
        raise SettingsError(
            f"{path} is there already, with other content: nothing was written. "
            "Choose another name, or replace it with --force."
        )
    replace_file(path, content)
    return True


def _relative(path: Path, folder: Path) -> str:
    """Return `path` as seen from `folder`; links are resolved only above the data, not in it."""
    return Path(os.path.relpath(path, os.path.realpath(folder))).as_posix()
