"""The cases of a bundle: files by modality, a name for the results, folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from transforms import NameAfterCased, cases_of_fold, named_cases
from transforms.cases import CASE_KEY

MODALITIES = ["t1", "t2"]


def named(*entries: dict[str, Any], **options: Any) -> list[dict[str, str]]:
    return named_cases(entries, modalities=MODALITIES, **options)


def test_files_are_found_by_their_modality_and_lie_in_the_folder() -> None:
    entry = {"t2": "b/two.nii.gz", "case": "A", "t1": "b/one.nii.gz", "seg": "s.nii", "fold": 1}
    assert named(entry, folder="/data") == [
        {CASE_KEY: "A", "t1": "/data/b/one.nii.gz", "t2": "/data/b/two.nii.gz"}
    ]


def test_an_absolute_path_stays_what_it_is() -> None:
    (case,) = named({"t1": "/elsewhere/X_t1.nii", "t2": "/elsewhere/X_t2.nii"}, folder="/data")
    assert case["t1"] == "/elsewhere/X_t1.nii"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (("X_t1.nii.gz", "X_t2.nii.gz"), "X"),
        (("X-001-t1n.nii.gz", "X-001-t2w.nii.gz"), "X-001"),
        (("W39_1998.09.19_t1.nii", "W39_1998.09.19_t2.nii"), "W39_1998.09.19"),
        (("patient 7/t1.nii.gz", "patient 7/t2.nii.gz"), "patient 7"),
        (("X_t1.NII.GZ", "X_t1ce.nii"), "X"),
    ],
)
def test_a_case_is_called_what_its_files_have_in_common(files: tuple[str, str], name: str) -> None:
    (case,) = named(dict(zip(MODALITIES, files, strict=True)), folder="/data")
    assert case[CASE_KEY] == name


def test_a_single_file_gives_its_own_name() -> None:
    (case,) = named_cases([{"ct": "scans/head.nii.gz"}], modalities=["ct"])
    assert case[CASE_KEY] == "head"


def test_files_beside_the_reader_take_the_name_of_its_folder() -> None:
    (case,) = named({"t1": "t1.nii.gz", "t2": "t2.nii.gz"})
    assert case[CASE_KEY] == Path.cwd().name


@pytest.mark.parametrize("key", ["seg", "label"])
def test_the_mask_is_the_label(key: str) -> None:
    (case,) = named({"t1": "X_t1.nii", "t2": "X_t2.nii", key: "m.nii"}, labelled=True, folder="/d")
    assert case["label"] == "/d/m.nii"


@pytest.mark.parametrize(
    ("entries", "options", "text"),
    [
        ([], {}, r"expected a list of cases; found \(\)"),
        (
            [{"case": "A", "t1": "a"}],
            {},
            "A: expected a file for each of t1, t2; found none for t2",
        ),
        ([{"t1": "a", "t2": None}], {}, "a case: expected .* none for t2"),
        ([{"case": "../A", "t1": "a", "t2": "b"}], {}, r"name becomes .*; found '\.\./A'"),
        ([{"case": ".A", "t1": "a", "t2": "b"}], {}, r"found '\.A'"),
        (
            [{"case": "A", "t1": "a", "t2": "b"}] * 2,
            {},
            "the same name: A. Give each entry its own",
        ),
        (
            [{"case": "A", "t1": "a", "t2": "b"}],
            {"labelled": True},
            "A: expected a mask under 'seg'",
        ),
        (
            [{"case": "A", "t1": "a", "t2": "b", "seg": "s", "labels": {"ET": 3}}],
            {"labelled": True},
            r"A: its mask has label values of its own, \{'ET': 3\}",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(
    entries: list[dict[str, Any]], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        named(*entries, **options)


def test_a_path_instead_of_a_list_is_refused() -> None:
    """What MONAI leaves of `--cases list.json` without its percent sign."""
    with pytest.raises(ValueError, match=r"expected a list of cases; found 'list\.json'"):
        named_cases("list.json", modalities=MODALITIES)  # type: ignore[arg-type]


def test_a_fold_is_held_out_and_the_rest_is_trained_on() -> None:
    cases: list[dict[str, Any]] = [
        {"case": "A", "fold": 0},
        {"case": "B", "fold": 1},
        {"case": "C"},
    ]
    assert cases_of_fold(cases, fold=0, held_out=True) == cases[:1]
    assert cases_of_fold(cases, fold=0, held_out=False) == cases[1:]


@pytest.mark.parametrize(
    ("cases", "held_out", "text"),
    [
        ([{"fold": 1}, {"fold": 2}], True, r"expected cases in fold 0; the folds are \[1, 2\]"),
        ([{"case": "A"}], True, "expected cases in fold 0; the folds are none"),
        ([{"fold": 0}], False, r"expected cases outside fold 0; the folds are \[0\]"),
    ],
)
def test_an_empty_part_is_refused(cases: list[dict[str, Any]], held_out: bool, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        cases_of_fold(cases, fold=0, held_out=held_out)


def test_results_are_called_by_the_case_and_keep_the_rest() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.ones(1, 2, 2, 2), affine=affine, meta={CASE_KEY: "X_flair.nii.gz"})
    data = {CASE_KEY: "W39_1998.09.19", "classes": volume}
    named_volume = NameAfterCased(["classes"])(data)["classes"]
    assert named_volume.meta[CASE_KEY] == "W39_1998.09.19.nii.gz"
    assert torch.equal(named_volume.affine, affine)
    assert volume.meta[CASE_KEY] == "X_flair.nii.gz"
