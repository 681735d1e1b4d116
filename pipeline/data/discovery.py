"""Finding the cases of BraTS 2018 to 2023 in a folder tree, by the names of their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.file_types import is_dicom
from pipeline.data.naming import (
    IMAGE_SUFFIXES,
    MODALITY_SPELLINGS,
    NIFTI_SUFFIXES,
    split_stem,
    stem_of,
    subject_of,
)
from pipeline.data.reading import faults_told
from pipeline.errors import Problem

MASK = "seg"
# What macOS leaves in archives, and a file system at its root, where only its owner may enter.
NO_CASES = ("__MACOSX", "lost+found")


@dataclass(frozen=True)
class Wanted:
    """What to look for: the modalities of a case, its mask too or not, and in which formats.

    With `any_format`, NRRD and MetaImage files count as well, and folders with a DICOM series that
    are named as a file would be (``flair``, ``X_t1ce``).
    """

    modalities: tuple[str, ...] = tuple(MODALITY_SPELLINGS)
    with_mask: bool = True
    any_format: bool = False

    def stem_of(self, file_name: str) -> str | None:
        """Return the name without its suffix; None for a file that is no image."""
        suffixes = IMAGE_SUFFIXES if self.any_format else NIFTI_SUFFIXES
        return stem_of(file_name, suffixes=suffixes)

    def split(self, stem: str) -> tuple[str, str] | None:
        """Return the prefix and the modality (or ``seg``); None if that is not wanted."""
        parts = split_stem(stem, others=self.modalities)
        words = (*self.modalities, MASK) if self.with_mask else self.modalities
        return parts if parts and parts[1] in words else None


@dataclass
class FoundCase:
    """The files of one case: absolute paths by modality, and the mask if there is one."""

    id: str
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The patient, whose cases all belong in one fold."""
        return subject_of(self.id)

    @property
    def images(self) -> dict[str, Path]:
        """The files of the modalities, in our order."""
        return {name: self.files[name] for name in MODALITY_SPELLINGS}

    @property
    def label(self) -> Path | None:
        """The mask; None for a case without."""
        return self.files.get(MASK)


@dataclass(frozen=True)
class Discovery:
    """What a folder tree holds: complete cases, sorted by id; problems; images not used.

    A problem is a case with a file missing, a file that could be either of two, an id twice, or a
    folder that cannot be read.
    """

    cases: tuple[FoundCase, ...]
    problems: tuple[Problem, ...]
    ignored: tuple[Path, ...]


BRATS = Wanted()


def find_cases(root: Path, *, wanted: Wanted = BRATS) -> Discovery:
    """Find every case below `root`, which may be a case folder itself.

    A case is the files of one folder that share what stands before the modality:
    ``X_flair.nii.gz``, ``X_t1.nii``, ``X-t1c.nii.gz``; or, where nothing stands before it, the
    folder. Where the folder holds one case and no ``seg``, a file with "seg" anywhere in its name
    is its mask (case 355 of BraTS 2020: ``W39_1998.09.19_Segm.nii``).
    Hidden files and folders are passed over; links to folders are followed, each folder once.
    """
    found: list[FoundCase] = []
    problems: list[Problem] = []
    ignored: list[Path] = []
    for folder, images in _folders(root, wanted, problems):
        cases, others = _cases_of_folder(folder, images, wanted, problems)
        found += cases
        ignored += others
    problems += _faults(found, wanted)
    faulty = {problem.case for problem in problems}
    complete = [case for case in found if case.id not in faulty]
    return Discovery(
        cases=tuple(sorted(complete, key=lambda case: case.id)),
        problems=tuple(sorted(problems)),
        ignored=tuple(sorted(ignored)),
    )


def _folders(
    root: Path, wanted: Wanted, problems: list[Problem]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield every folder below `root` with its visible images: {name: name without suffix}.

    A folder that cannot be read is noted, because there may be cases in it.
    """
    seen: set[str] = set()

    def note(error: OSError) -> None:
        problems.append(_unreadable(Path(error.filename or root), error))

    for path, subfolders, names in os.walk(root, followlinks=True, onerror=note):
        real = os.path.realpath(path)
        if real in seen:  # a link back to a folder above would never end
            subfolders.clear()
            continue
        seen.add(real)
        folder = Path(path)
        visible = sorted(name for name in names if not name.startswith("."))
        images = {name: stem for name in visible if (stem := wanted.stem_of(name))}
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and name not in NO_CASES
        )
        if wanted.any_format:
            series = [name for name in subfolders if _is_series(folder / name, wanted)]
            images |= {name: name for name in series}
            subfolders[:] = [name for name in subfolders if name not in series]
        yield folder, images


def _is_series(folder: Path, wanted: Wanted) -> bool:
    """Tell whether a folder is named after a modality and holds DICOM files."""
    if wanted.split(folder.name) is None:
        return False
    with faults_told(folder.name):
        return any(path.is_file() and is_dicom(path) for path in sorted(folder.iterdir()))


def _cases_of_folder(
    folder: Path, images: Mapping[str, str], wanted: Wanted, problems: list[Problem]
) -> tuple[list[FoundCase], list[Path]]:
    """Return the cases of one folder and its other images; note files that compete."""
    cases: dict[str, FoundCase] = {}
    others: list[Path] = []
    for name, stem in images.items():
        parts = wanted.split(stem)
        if parts is None:
            others.append(folder / name)
            continue
        case = cases.setdefault(parts[0], FoundCase(id=parts[0] or folder.name, folder=folder))
        other = case.files.setdefault(parts[1], folder / name)
        if other.name != name:
            problems.append(_ambiguous(case, parts[1], [other, folder / name]))
    if not wanted.with_mask:
        return list(cases.values()), others
    with_images = [case for case in cases.values() if set(case.files) != {MASK}]
    if len(with_images) == 1:
        # A mask under a name of its own belongs to the one case that is here.
        others += [case.files[MASK] for case in cases.values() if case not in with_images]
        return with_images, _adopt_mask(with_images[0], others, problems)
    return list(cases.values()), others


def _adopt_mask(case: FoundCase, others: list[Path], problems: list[Problem]) -> list[Path]:
    """Give a case without a mask the file that looks like one; return the files left over."""
    candidates = [path for path in others if MASK in path.name.lower()]
    if case.label or not candidates:
        return others
    if len(candidates) > 1:
        problems.append(_ambiguous(case, MASK, candidates))
        return others
    case.files[MASK] = candidates[0]
    return [path for path in others if path != candidates[0]]


def _faults(cases: list[FoundCase], wanted: Wanted) -> list[Problem]:
    """Return the cases with a modality missing, and those whose id another case has."""
    problems = []
    folder_of_id: dict[str, Path] = {}
    for case in cases:
        missing = [name for name in wanted.modalities if name not in case.files]
        if missing:
            problems.append(
                Problem(
                    case=case.id,
                    kind="incomplete-case",
                    file=str(case.folder),
                    expected=f"a file for each of {', '.join(wanted.modalities)}",
                    found=f"none for {', '.join(missing)}",
                    remedy="Add the files, or leave such cases out with --skip-incomplete.",
                )
            )
        other = folder_of_id.setdefault(case.id.casefold(), case.folder)
        if other != case.folder:
            problems.append(
                Problem(
                    case=case.id,
                    kind="duplicate-case",
                    file=str(case.folder),
                    expected="an id that no other case has",
                    found=f"the same id in {other}",
                    remedy="Move one of the two folders out of the tree.",
                )
            )
    return problems


def _unreadable(folder: Path, error: OSError) -> Problem:
    return Problem(
        case=folder.name,
        kind="unreadable-file",
        file=str(folder),
        expected="a folder that can be read: it may hold cases",
        found=error.strerror or str(error),
        remedy="Check its permissions and the disk, or move it out of the tree.",
    )


def _ambiguous(case: FoundCase, name: str, paths: list[Path]) -> Problem:
    return Problem(
        case=case.id,
        kind="ambiguous-file",
        file=str(case.folder),
        expected="one mask" if name == MASK else f"the file of {name}",
        found=" and ".join(path.name for path in paths),
        remedy="Move the one that does not belong there out of the folder.",
    )
