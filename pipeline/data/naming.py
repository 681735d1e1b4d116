"""The words for modalities, labels, regions and subjects, and how other datasets spell them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

# Our name -> every spelling seen in BraTS 2018-2024, the Decathlon and MONAI (lower case).
MODALITY_SPELLINGS: dict[str, tuple[str, ...]] = {
    "flair": ("flair", "t2f", "t2flair"),
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
}
MODALITY_OF_SPELLING: dict[str, str] = {
    spelling: name for name, spellings in MODALITY_SPELLINGS.items() for spelling in spellings
}
LABEL_NAMES = ("background", "necrotic_core", "oedema", "enhancing_tumour")
REGIONS: dict[str, tuple[str, ...]] = {
    "WT": ("necrotic_core", "oedema", "enhancing_tumour"),
    "TC": ("necrotic_core", "enhancing_tumour"),
    "ET": ("enhancing_tumour",),
}
# The first pattern that is found decides: "non-enhancing" has to be tried before "enhancing",
# and the "surrounding non-enhancing FLAIR hyperintensity" of BraTS 2023 before both.
LABEL_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"^background$", "background"),
    (r"edema|hyperintensity|^snfh$|^ed$", "oedema"),
    (r"necro|non ?enhanc|^ncr|^netc$", "necrotic_core"),
    (r"enhanc|^et$", "enhancing_tumour"),
)
NIFTI_SUFFIXES = (".nii", ".nii.gz")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")
# A case's id becomes the name of files and folders, on any system.
CASE_ID = re.compile(r"\w(?:[\w .+@()=-]{0,126}[\w)])?")
TIMEPOINT = re.compile(r"(BraTS-[A-Za-z]+-\d{4,5})-\d{3}")


def modality_name(text: str) -> str:
    """Return our name of a modality: ``FLAIR`` -> ``flair``, ``t1gd`` -> ``t1ce``.

    A modality that is not one of BraTS's four keeps its name, in lower case.
    """
    return MODALITY_OF_SPELLING.get(text.lower(), text.lower())


def label_names(texts: Sequence[str]) -> dict[str, str]:
    """Return our name for each label where it is recognisable, else its own: {text: name}.

    Where two labels would get the same name (BraTS 2013 counts necrosis and the non-enhancing
    core apart), all keep their own: a distinction that the dataset makes is never dropped.
    """
    names = {text: _label_name(text) for text in texts}
    if len(set(names.values())) < len(names):
        return {text: text for text in texts}
    return names


def default_regions(labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the regions of a header that states none, from its label names.

    BraTS's WT, TC and ET where its three labels are all there; and each other foreground label is
    a region by itself, because a union of labels that we do not know would mean nothing.
    """
    known = set(REGIONS["WT"])
    regions = dict(REGIONS) if known <= set(labels) else {}
    covered = known if regions else set()
    own = {name: (name,) for name in labels[1:] if name not in covered}
    return {**regions, **own}


def subject_of(case: str) -> str:
    """Return the subject of a case id: BraTS 2023 and later end in a time point (``-000``)."""
    match = TIMEPOINT.fullmatch(case)
    return match.group(1) if match else case


def stem_of(file_name: str, *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> str | None:
    """Return an image file's name without its suffix; None for any file with another one."""
    endings = "|".join(re.escape(suffix) for suffix in suffixes)
    match = re.fullmatch(rf"(.+?)({endings})", file_name, flags=re.IGNORECASE)
    return match.group(1) if match else None


def split_stem(stem: str, *, others: Sequence[str] = ()) -> tuple[str, str] | None:
    """Split ``X_t1ce``, ``X-t1c`` or ``flair`` into its prefix (may be empty) and our word.

    The word is a modality's name or ``seg``; None where the stem ends in neither. `others` are
    modalities that are not BraTS's.
    """
    match = _last_word(tuple(others)).fullmatch(stem)
    return (match.group(1) or "", modality_name(match.group(2))) if match else None


def safe_case_id(text: str) -> str:
    """Return `text` as a case id that can name files: odd characters become ``_``."""
    if CASE_ID.fullmatch(text):
        return text
    safe = re.sub(r"[^\w .+@()=-]", "_", text)[:128]
    # Neither a dot or a dash in front nor a space or a dot at the end.
    safe = re.sub(r"^\W|[^\w)]$", "_", safe)
    return safe or "case"


def case_id_of(images: Sequence[str]) -> str:
    """Return the id of a case that states none, from the paths of its image files.

    One file: its name without a modality at its end. Several: what their names have in common
    (``X_flair``, ``X_t1`` -> ``X``). Where nothing is left, the name of the folder.
    """
    paths = [PurePosixPath(image) for image in images]
    stems = [stem_of(path.name) or path.name for path in paths]
    if len(set(stems)) == 1:
        parts = split_stem(stems[0])
        common = parts[0] if parts else stems[0]
    else:
        common = _common_words(stems)
    return common or paths[0].parent.name


def by_index(value: Mapping[str, Any]) -> list[Any] | None:
    """Return the values of the Decathlon's ``{"0": a, "1": b}`` in order; None for other keys."""
    keys = [str(index) for index in range(len(value))]
    return [value[key] for key in keys] if set(keys) == set(value) else None


@cache
def _last_word(others: tuple[str, ...]) -> re.Pattern[str]:
    words = "|".join(re.escape(word) for word in (*MODALITY_OF_SPELLING, *others, "seg"))
    return re.compile(rf"(?:(.*)[-_. ])?({words})", re.IGNORECASE)


def _label_name(text: str) -> str:
    plain = re.sub(r"[-_\s]+", " ", text.strip().lower())
    return next((name for pattern, name in LABEL_PATTERNS if re.search(pattern, plain)), text)


def _common_words(stems: Sequence[str]) -> str:
    """Return the words at the front that all stems share: ``A-t1``, ``A-t1c`` -> ``A``."""
    columns = zip(*(re.split(r"([-_. ])", stem) for stem in stems), strict=False)
    shared = takewhile(lambda column: len(set(column)) == 1, columns)
    return "".join(column[0] for column in shared).rstrip("-_. ")
