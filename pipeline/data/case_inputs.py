"""Cases that no data list describes: folders and single files, for inference.

Modalities are known by their names, never by their order. The cases have no label.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data.content import with_case
from pipeline.data.datalist_cases import Case
from pipeline.data.discovery import Wanted, find_cases
from pipeline.data.naming import case_id_of, modality_name, safe_case_id, subject_of
from pipeline.errors import DataError, Problem

BY_HAND = "Add what is missing, or name the files one by one with --flair and so on."


def cases_of_folder(folder: Path, *, modalities: Sequence[str]) -> tuple[Case, ...]:
    """Return the cases in `folder`, which may be one or a tree of them, sorted by id.

    The images of a case are files (NIfTI, NRRD, MetaImage) or folders with a DICOM series, side by
    side, that share what stands before the modality: ``X_flair.nii.gz``, ``X-t1c.nrrd``, ``T2/``.
    Other files are passed over. Raises DataError with every fault: kinds ``missing-folder``,
    ``no-case``, ``incomplete-case``, ``ambiguous-file``, ``duplicate-case`` and
    ``unreadable-file``.
    """
    cases, problems = cases_of_folders([folder], modalities=modalities)
    if problems:
        raise DataError.of(*problems)
    return cases


def cases_of_folders(
    folders: Iterable[Path], *, modalities: Sequence[str]
) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    """Return the cases in several folders, and every fault of the others, as `cases_of_folder`.

    Of cases with the same id, none is among the first: nobody knows which one is meant.
    """
    found = [_found_in(folder, modalities) for folder in folders]
    cases = [case for some, _ in found for case in some]
    problems = [problem for _, some in found for problem in some] + _same_ids(cases)
    unclear = {
        safe_case_id(problem.case).casefold()
        for problem in problems
        if problem.kind == "duplicate-case"
    }
    clear = tuple(case for case in cases if case.id.casefold() not in unclear)
    return clear, tuple(problems)


def _found_in(folder: Path, modalities: Sequence[str]) -> tuple[list[Case], list[Problem]]:
    """Return the cases in a folder or a tree, and what is wrong with it and with the others."""
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir may raise PermissionError
        return [], [
            _of_folder(
                folder,
                "missing-folder",
                "a folder with cases",
                "no such folder",
                "Correct the path.",
            )
        ]
    names = tuple(map(modality_name, modalities))
    wanted = Wanted(modalities=names, with_mask=False, any_format=True)
    # Absolute, because the name of the folder may be the id of the case.
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - keeps links, whose names may be the ids
    try:
        discovery = find_cases(root, wanted=wanted)
    except DataError as error:
        return [], with_case(error, root.name)
    cases = [_case(case.id, tuple(case.files[name] for name in names)) for case in discovery.cases]
    problems = [*map(_for_inference, discovery.problems)]
    if not cases and not problems:
        problems.append(
            _of_folder(
                folder,
                "no-case",
                f"images called {', '.join(f'X_{name}' for name in names)}",
                "none",
                "Name the files or folders after their modalities, or use --flair and so on.",
            )
        )
    return cases, problems


def case_of_files(
    files: Mapping[str, Path], *, modalities: Sequence[str], case_id: str | None = None
) -> Case:
    """Return the case whose images are `files`: {modality in any known spelling: path}.

    Without a `case_id`, it is what the names of the files have in common. Whether they can be read
    is for whoever reads them. Raises DataError with every fault: kinds ``missing-modality``,
    ``unknown-modality``, ``repeated-modality``, ``repeated-file`` and ``case-id``.
    """
    names = tuple(map(modality_name, modalities))
    given: dict[str, list[Path]] = {}
    for spelling, path in files.items():
        given.setdefault(modality_name(spelling), []).append(path)
    common = case_id_of([path.as_posix() for path in files.values()]) if files else ""
    shown = case_id or safe_case_id(common)
    problems = [*_wrong_modalities(given, names, shown), *_same_files(files, shown)]
    if case_id is not None and safe_case_id(case_id) != case_id:
        problems.append(_wrong_id(case_id))
    if problems:
        raise DataError.of(*problems)
    return _case(shown, tuple(given[name][0] for name in names))


def _case(case_id: str, images: tuple[Path, ...]) -> Case:
    safe = safe_case_id(case_id)
    return Case(
        id=safe,
        subject=subject_of(safe),
        images=images,
        label=None,
        fold=None,
        label_values=(),
    )


def _for_inference(problem: Problem) -> Problem:
    """Return a problem of `find_cases` with the remedy that there is without a data list."""
    return replace(problem, remedy=BY_HAND) if problem.kind == "incomplete-case" else problem


def _same_ids(cases: Iterable[Case]) -> list[Problem]:
    """Report cases whose ids are the same once they are safe, or but for capitals."""
    first_with: dict[str, Case] = {}
    problems = []
    for case in cases:
        first = first_with.setdefault(case.id.casefold(), case)
        if first is not case:
            problems.append(
                Problem(
                    case=case.id,
                    kind="duplicate-case",
                    file=str(case.images[0].parent),
                    expected="an id that no other case has, even without regard to capitals",
                    found=f"the same as of {first.images[0].name} in {first.images[0].parent}",
                    remedy="Rename the files of one of the two cases.",
                )
            )
    return problems


def _wrong_modalities(
    given: Mapping[str, Sequence[Path]], names: Sequence[str], case_id: str
) -> list[Problem]:
    """Report the modalities that are missing, that nobody asked for, and that are there twice."""
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    repeated = [name for name, paths in given.items() if len(paths) > 1]
    faults = (
        ("missing-modality", missing, "Give a file for each."),
        ("unknown-modality", unknown, "Leave them out: the network was not trained with them."),
        ("repeated-modality", repeated, "Give one file for each."),
    )
    return [
        Problem(
            case=case_id,
            kind=kind,
            file="",
            expected=f"one file for each of {', '.join(names)}",
            found=f"{kind.split('-')[0]}: {', '.join(found)}",
            remedy=remedy,
        )
        for kind, found, remedy in faults
        if found
    ]


def _same_files(files: Mapping[str, Path], case_id: str) -> list[Problem]:
    """Report a file that is given for two modalities, under whatever path."""
    spellings_of: dict[str, list[str]] = {}
    for spelling, path in files.items():
        spellings_of.setdefault(os.path.realpath(path), []).append(spelling)
    return [
        Problem(
            case=case_id,
            kind="repeated-file",
            file=Path(path).name,
            expected="another file for each modality",
            found=f"the same file for {' and '.join(spellings)}",
            remedy="Correct the path that was repeated.",
        )
        for path, spellings in spellings_of.items()
        if len(spellings) > 1
    ]


def _wrong_id(case_id: str) -> Problem:
    return Problem(
        case=case_id,
        kind="case-id",
        file="",
        expected="letters, digits and _-.+@=() as the name of the case, at most 128",
        found=repr(case_id),
        remedy=f"Call it {safe_case_id(case_id)!r}, for example.",
    )


def _of_folder(folder: Path, kind: str, expected: str, found: str, remedy: str) -> Problem:
    return Problem(
        case=folder.name,
        kind=kind,
        file=str(folder),
        expected=expected,
        found=found,
        remedy=remedy,
    )
