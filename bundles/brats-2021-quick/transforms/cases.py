"""Entries of a data list -> cases of a bundle: files by modality, and a name for the results."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

CASE_KEY = str(ImageMetaKey.FILENAME_OR_OBJ)
"""Where a case keeps its name: MONAI's own word, which its metric files and writers look for."""

LABEL_KEYS = ("seg", "label")  # what data lists call the mask; a case calls it `label`
WORDS = re.compile(r"([-_. ])")


def case_of(data: Mapping[Hashable, Any]) -> str:
    """Return the name of a case for a message."""
    return str(data.get(CASE_KEY, "the case"))


def named_cases(
    cases: Sequence[Mapping[str, Any]],
    *,
    modalities: Sequence[str],
    folder: str = ".",
    labelled: bool = False,
) -> list[dict[str, str]]:
    """Return for each entry its files by modality, and its name under `CASE_KEY`.

    The name is what the results are called: the entry's `case`, else what the names of its files
    have in common (``X_flair``, ``X_t1`` -> ``X``), else the name of their folder.

    Args:
        cases: entries with the modalities' names as keys and files as values; others are left out.
        modalities: in the order of the network's channels.
        folder: what relative paths are relative to.
        labelled: whether each entry must have a mask, `seg` or `label`; it becomes `label`.

    Raises:
        ValueError: there is no case, a file is not named, a name is not one of a file, two cases
            have the same one, or a case codes its labels in its own way.
    """
    if isinstance(cases, str) or not cases:
        raise ValueError(f"expected a list of cases; found {cases!r}")
    named = [_named(entry, modalities, folder, labelled) for entry in cases]
    names = [case[CASE_KEY] for case in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"results of two cases would have the same name: {', '.join(twice)}. Give each entry "
            f"its own 'case'"
        )
    return named


def _named(
    entry: Mapping[str, Any], modalities: Sequence[str], folder: str, labelled: bool
) -> dict[str, str]:
    missing = [name for name in modalities if not isinstance(entry.get(name), str)]
    if missing:
        raise ValueError(
            f"{entry.get('case', 'a case')}: expected a file for each of {', '.join(modalities)}; "
            f"found none for {', '.join(missing)}"
        )
    files = {name: str(Path(folder) / entry[name]) for name in modalities}
    name = str(entry["case"]) if "case" in entry else _common_name(list(files.values()))
    if not name or name != Path(name).name or "\\" in name or "\0" in name or name[0] == ".":
        raise ValueError(f"a case's name becomes that of its files; found {name!r}")
    if labelled:
        files["label"] = str(Path(folder) / _mask(entry, name))
    return {CASE_KEY: name, **files}


def _mask(entry: Mapping[str, Any], name: str) -> str:
    if "labels" in entry:
        raise ValueError(
            f"{name}: its mask has label values of its own, {entry['labels']}; here all masks must "
            f"have the values that the network was trained on. Recode this one, or leave it out"
        )
    mask = next((entry[key] for key in LABEL_KEYS if key in entry), None)
    if not isinstance(mask, str):
        raise ValueError(f"{name}: expected a mask under 'seg'; found {mask!r}")
    return mask


def _common_name(files: Sequence[str]) -> str:
    """Return the words at the front that the files' names share, or their folder's name."""
    stems = [re.sub(r"\.nii(\.gz)?$", "", Path(file).name, flags=re.IGNORECASE) for file in files]
    if len(stems) == 1:
        return stems[0]
    columns = zip(*(WORDS.split(stem) for stem in stems), strict=False)
    shared = takewhile(lambda column: len(set(column)) == 1, columns)
    common = "".join(column[0] for column in shared).rstrip("-_. ")
    return common or Path(files[0]).absolute().parent.name


def cases_of_fold(
    cases: Sequence[Mapping[str, Any]], *, fold: int, held_out: bool
) -> list[Mapping[str, Any]]:
    """Return the entries whose `fold` is this one, or all others.

    Args:
        cases: entries of a data list; one without a `fold` is never held out.
        fold: the fold to validate on.
        held_out: whether to return its cases; otherwise those to train on.

    Raises:
        ValueError: there would be none.
    """
    chosen = [entry for entry in cases if (entry.get("fold") == fold) == held_out]
    if not chosen:
        folds = sorted({entry["fold"] for entry in cases if "fold" in entry})
        wanted = "in" if held_out else "outside"
        raise ValueError(f"expected cases {wanted} fold {fold}; the folds are {folds or 'none'}")
    return chosen


class NameAfterCased(MapTransform):
    """Call the volumes at the keys by their case's name, so that writers name files by it."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` in which the MetaTensors at the keys have the case's name."""
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            renamed = MetaTensor(volume.as_tensor())
            renamed.copy_meta_from(volume)
            # The ending is for writers to cut off: a name may have dots of its own.
            renamed.meta[CASE_KEY] = f"{case_of(data)}.nii.gz"
            result[key] = renamed
        return result
