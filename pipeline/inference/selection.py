"""Which cases a command line means: of a data list, of folders, or of single files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.case_inputs import case_of_files, cases_of_folder
from pipeline.data.checking import all_cases
from pipeline.data.datalist import Case, DataList
from pipeline.errors import DataError, Problem, SettingsError


def cases_of_list(datalist: DataList, *, fold: int | None, ids: Sequence[str]) -> tuple[Case, ...]:
    """Return the validation cases of `fold`, those named by `ids`, or all cases of the list.

    Raises:
        SettingsError: Both are given, or an id is not in the list.
        DataError: There is no such fold.
    """
    if fold is not None and ids:
        raise SettingsError("--fold and --cases: expected one of them; found both.")
    if fold is not None:
        return datalist.split(fold)[1]
    cases = {case.id: case for case in all_cases(datalist)}
    unknown = sorted(set(ids) - set(cases))
    if unknown:
        raise SettingsError(f"--cases: not in {datalist.path.name}: {', '.join(unknown)}.")
    return tuple(cases[name] for name in dict.fromkeys(ids)) if ids else tuple(cases.values())


def cases_of_folders(folders: Sequence[Path], header: Mapping[str, Any]) -> tuple[Case, ...]:
    """Return the cases in `folders`, whose images are found by the names of their modalities.

    Raises:
        DataError: A modality is missing or there twice, or two cases have one id.
    """
    cases = [
        case
        for folder in folders
        for case in cases_of_folder(folder, modalities=header["modality"])
    ]
    counts = Counter(case.id for case in cases)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError.of(*(_twice(name) for name in twice))
    return tuple(cases)


def one_case(
    files: Mapping[str, Path], header: Mapping[str, Any], *, case_id: str | None
) -> tuple[Case, ...]:
    """Return the case whose modalities are in `files`.

    Raises:
        DataError: A modality is missing.
    """
    return (case_of_files(files, modalities=header["modality"], case_id=case_id),)


def _twice(name: str) -> Problem:
    return Problem(
        case=name,
        kind="duplicate-case",
        file="",
        expected="an id that no other case has",
        found="two cases of this name in the folders",
        remedy="Segment them into two different folders.",
    )
