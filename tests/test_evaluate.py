"""The verb, as a user runs it: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import AFFINE, SHAPE, CohortFactory, nested_label, save_nifti
from prediction_files import (
    probabilities_of,
    write_prediction,
    write_probabilities,
    write_record,
)

from pipeline import evaluate
from pipeline.cli import ExitCode
from pipeline.data.datalist import read_datalist
from pipeline.errors import ResourceError
from pipeline.evaluation.result_files import make_folder
from pipeline.training.start import SETTINGS

KINDS = ("perfect", "empty", "shifted", "perfect")
# The last bits of a quotient in float64.
FLOAT64 = 1e-12
# A header holds its affine in float32: 1.2 mm is 1.20000005 mm.
HEADER_MM = 1e-6

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # in which no row of a table may be folded


@pytest.fixture
def cohort(cohort_factory: CohortFactory) -> Path:
    """The list of four cases in two folds, with predictions perfect, empty, moved, perfect."""
    path = cohort_factory(num_cases=4, num_folds=2)
    for index, kind in enumerate(KINDS):
        write_prediction(path.parent / "masks", f"case_{index:03d}", kind)
        write_record(path.parent / "masks", f"case_{index:03d}", False)
    return path


def run(cohort: Path, *options: str, masks: str = "masks") -> int:
    folder = cohort.parent
    return evaluate.main([str(folder / masks), str(cohort), "-o", str(folder / "out"), *options])


def summary(cohort: Path) -> Any:
    return json.loads((cohort.parent / "out" / "summary.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def row_of(output: str, *cells: str) -> bool:
    """Whether a line of a printed table has these cells, in this order."""
    return any(line.split() == list(cells) for line in output.splitlines())


# ---- Scores -------------------------------------------------------------------------------------


def test_the_means_over_all_cases(cohort: Path) -> None:
    assert run(cohort) == ExitCode.DONE
    means = {name: one["mean"] for name, one in summary(cohort)["summary"].items()}
    # 1, 0, 7/8, 1: the missed tumour counts as 0, and in mm as the grid's diagonal.
    assert means["dice_WT"] == (1 + 0 + 7 / 8 + 1) / 4
    assert means["hd95_mm_WT"] == pytest.approx((373.13 + 1.2) / 4, abs=HEADER_MM)
    assert means["lesion_hd95_mm_WT"] == pytest.approx((374 + 1.2) / 4, abs=HEADER_MM)
    assert means["lesions_missed_ET"] == 1 / 4
    assert means["background_dice_mean"] == 0
    interval = summary(cohort)["summary"]["dice_WT"]["interval_95"]
    # Of 256 samples one has all four cases missed; three of four missed are 5 %, all kept 32 %.
    assert interval == [pytest.approx(0.25, abs=0.03), 1.0]


def test_the_printed_tables(cohort: Path, capsys: Captured) -> None:
    assert run(cohort) == ExitCode.DONE
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[0].startswith("4 cases (every labelled case of the data list), ")
    assert lines[0].endswith("GB of memory")
    low, high = summary(cohort)["summary"]["dice_WT"]["interval_95"]
    interval = (f"{low:.3f}", "to", f"{high:.3f}")
    assert row_of(output, "WT", "0.719", *interval, "0.938", "93.58", "0.60", "0.719", "0.000"), (
        output
    )
    assert "article's metrics, which count the background as a class (4 from the mask)" in output
    assert "No case is left out of a mean" in output
    assert "Warning" not in output
    worst = [line.split()[0] for line in lines if line.startswith("case_")]
    assert worst == ["case_001", "case_002", "case_000", "case_003"]
    assert row_of(
        output, "case_001", "0.000", "0.000", "0.000", "0.000", "373.13", "373.13", "373.13"
    )
    folder = cohort.parent / "out"
    names = ("cases.csv", "summary.json", "summary.md")
    assert lines[-1] == "Files: " + ", ".join(str(folder / name) for name in names)


def test_the_files(cohort: Path) -> None:
    assert run(cohort) == ExitCode.DONE
    folder = cohort.parent / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cases.csv",
        "summary.json",
        "summary.md",
    ]
    table = rows(folder / "cases.csv")
    assert [row["case"] for row in table] == ["case_001", "case_002", "case_000", "case_003"]
    assert float(table[1]["dice_WT"]) == 7 / 8
    assert table[0]["ece"] == ""
    document = summary(cohort)
    origin = ["article_metrics_from", "seen_in_training"]
    assert list(table[0]) == ["case", *document["columns"], *origin]
    assert [row["case"] for row in document["cases"]] == [row["case"] for row in table]
    assert document["cases"][0]["hd95_mm_TC"] == 373.13
    assert document["num_cases"] == document["num_subjects"] == 4
    assert document["predictions"] == "masks"
    assert document["data_list"]["file"] == "cohort.json"
    assert document["seen_in_training"] == {"seen": 0, "unseen": 4, "unknown": 0}
    assert document["bootstrap"] == {
        "what": "95 % percentile interval of the mean, cases drawn with replacement",
        "resamples": 10_000,
        "seed": 0,
    }
    assert "BraTS-2023-Metrics" in document["definitions"]["lesion_dice_<R>"]
    assert "surface-distance" in document["definitions"]["hd95_mm_<R>"]
    markdown = (folder / "summary.md").read_text()
    assert "| region | Dice | 95 % interval | median | HD95 mm | median |" in markdown
    assert "| WT | 0.719 | " in markdown
    assert document["empty_region_rule"] in markdown


def test_the_same_command_writes_the_same_bytes(cohort: Path) -> None:
    def written() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (cohort.parent / "out").iterdir()}

    run(cohort, "--workers", "1")
    first = written()
    run(cohort, "--workers", "3")
    assert written() == first
    run(cohort, "--seed", "1")
    assert written() != first


def test_empty_rules_beside_each_other(cohort: Path, capsys: Captured) -> None:
    """One reference is empty, and so is its prediction: 1, left out, or 0."""
    case = read_datalist(cohort).training[1]
    assert case.label is not None
    save_nifti(case.label, np.zeros(SHAPE, dtype=np.uint8))
    assert run(cohort, "--empty-rules") == ExitCode.DONE
    means = summary(cohort)["empty_rules"]["means"]["dice_WT"]
    assert {rule: (one["mean"], one["num_cases"]) for rule, one in means.items()} == {
        "stated": (pytest.approx(3.875 / 4, abs=FLOAT64), 4),
        "skip": (pytest.approx(2.875 / 3, abs=FLOAT64), 3),
        "worst_case": (pytest.approx(2.875 / 4, abs=FLOAT64), 4),
    }
    output = capsys.readouterr().out
    assert row_of(output, "dice_WT", "0.969", "(4)", "0.958", "(3)", "0.719", "(4)")
    # Moved by 1.2 mm in one of four or three cases; 373.13 mm in the worst case.
    assert row_of(output, "hd95_mm_WT", "0.30", "(4)", "0.40", "(3)", "93.58", "(4)")
    markdown = (cohort.parent / "out" / "summary.md").read_text()
    assert "`skip`: Cases whose reference region is empty are left out" in markdown


def test_probabilities_are_used_where_they_exist(cohort: Path, capsys: Captured) -> None:
    probabilities = probabilities_of(nested_label(SHAPE), certainty=0.75)
    write_probabilities(cohort.parent / "masks", "case_000", probabilities)
    assert run(cohort) == ExitCode.DONE
    assert "(3 from the mask, 1 from the probabilities)" in capsys.readouterr().out
    document = summary(cohort)
    assert document["article_metrics_from"] == {"probabilities": 1, "mask": 3}
    of_case = {row["case"]: row for row in document["cases"]}
    # float32 holds 0.75 exactly; the article's guard of 1e-6 moves the quotient by less than that.
    assert of_case["case_000"]["article_dice"] == pytest.approx(0.75, abs=1e-6)
    assert of_case["case_000"]["ece"] == pytest.approx(0.25, abs=FLOAT64)
    assert of_case["case_003"]["ece"] is None
    # It is over the one case that has it.
    assert document["summary"]["ece"]["num_cases"] == 1


# ---- Which cases --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "cases", "words"),
    [
        (("--fold", "1"), ["case_001", "case_003"], "the validation cases of fold 1"),
        (("--cases", "case_002", "case_000"), ["case_002", "case_000"], "that were named"),
    ],
)
def test_a_choice_of_cases(
    cohort: Path, capsys: Captured, options: tuple[str, ...], cases: list[str], words: str
) -> None:
    assert run(cohort, *options) == ExitCode.DONE
    assert [row["case"] for row in summary(cohort)["cases"]] == cases
    assert words in capsys.readouterr().out


def test_a_missing_prediction_is_never_left_out(cohort: Path, capsys: Captured) -> None:
    for case in ("case_001", "case_002"):
        (cohort.parent / "masks" / f"{case}_seg.nii.gz").unlink()
    assert run(cohort) == ExitCode.DATA
    error = capsys.readouterr().err
    assert error.count("missing-prediction") == 2
    assert "case_001" in error
    assert "--fold N evaluates one fold's cases only, --cases ID" in error
    assert not (cohort.parent / "out").exists()
    assert run(cohort, "--cases", "case_000", "case_003") == ExitCode.DONE


def test_an_unknown_case(cohort: Path, capsys: Captured) -> None:
    assert run(cohort, "--cases", "case_009") == ExitCode.SETTINGS
    assert "expected ids of cohort.json; found also case_009" in capsys.readouterr().err


def test_fold_and_cases_exclude_each_other(cohort: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(cohort, "--fold", "0", "--cases", "case_000")
    assert "not allowed with argument --fold" in capsys.readouterr().err


# ---- Problems -----------------------------------------------------------------------------------


def test_every_problem_of_every_case_and_nothing_is_written(cohort: Path, capsys: Captured) -> None:
    masks = cohort.parent / "masks"
    moved = AFFINE.copy()
    moved[2, 3] += 1
    write_prediction(masks, "case_000", affine=moved)
    write_prediction(masks, "case_001", values=(0, 1, 2, 3))
    damaged = masks / "case_002_seg.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert run(cohort) == ExitCode.DATA
    error = capsys.readouterr().err
    for words in (
        "case_000, masks/case_000_seg.nii.gz: different-grid: expected the grid of case_000_seg",
        "case_001, masks/case_001_seg.nii.gz: label-coding: expected enhancing_tumour coded 4",
        "case_002, masks/case_002_seg.nii.gz: checksum: expected ",
    ):
        assert words in error
    assert not (cohort.parent / "out").exists()


def test_the_output_is_a_file(cohort: Path, capsys: Captured) -> None:
    (cohort.parent / "out").touch()
    assert run(cohort) == ExitCode.SETTINGS
    assert "out: expected a folder for the results; found a file." in capsys.readouterr().err


def test_the_output_cannot_be_created(cohort: Path, capsys: Captured) -> None:
    (cohort.parent / "file").touch()
    folder = cohort.parent
    arguments = [str(folder / "masks"), str(cohort), "-o", str(folder / "file" / "out")]
    assert evaluate.main(arguments) == ExitCode.RESOURCES
    assert "file: expected a folder; found a file." in capsys.readouterr().err
    with pytest.raises(ResourceError, match="out: cannot be created: Not a directory"):
        make_folder(folder / "file" / "out")


def test_results_are_replaced(cohort: Path) -> None:
    assert run(cohort) == ExitCode.DONE
    assert run(cohort, "--fold", "0") == ExitCode.DONE
    assert summary(cohort)["num_cases"] == 2


def test_results_are_replaced_though_some_are_missing(cohort: Path) -> None:
    """As an interruption leaves them: the summary gets its name before the others."""
    assert run(cohort) == ExitCode.DONE
    (cohort.parent / "out" / "cases.csv").unlink()
    assert run(cohort, "--fold", "0") == ExitCode.DONE
    assert len(rows(cohort.parent / "out" / "cases.csv")) == 2


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        (SETTINGS, "{}", r"a run \(settings.json\)"),
        ("summary.json", '{"best": null, "last": null, "epochs": 4}', "summary.json"),
        ("summary.json", "[]", "summary.json"),
        ("summary.json", "not JSON", "summary.json"),
        ("cases.csv", "patient\n", "cases.csv"),
        ("comparison.json", "{}", "comparison.json"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    cohort: Path, capsys: Captured, name: str, content: str, found: str
) -> None:
    path = cohort.parent / "out" / name
    path.parent.mkdir()
    path.write_text(content)
    assert run(cohort) == ExitCode.SETTINGS
    expected = rf"out: expected a folder of its own for the results.*; found {found}, of something"
    assert re.search(expected, capsys.readouterr().err)
    assert [path.name for path in path.parent.iterdir()] == [name]
    assert path.read_text() == content


def test_scores_of_a_run_that_was_scored_already_are_not_put_into_it(cohort: Path) -> None:
    assert run(cohort) == ExitCode.DONE
    (cohort.parent / "out" / SETTINGS).write_text("{}")
    assert run(cohort) == ExitCode.SETTINGS


def test_other_files_beside_the_results_do_not_matter(cohort: Path) -> None:
    """Masks and scores may lie in one folder."""
    arguments = [str(cohort.parent / "masks"), str(cohort), "-o", str(cohort.parent / "masks")]
    assert evaluate.main(arguments) == ExitCode.DONE
    assert evaluate.main(arguments) == ExitCode.DONE


def test_no_such_predictions(cohort: Path, capsys: Captured) -> None:
    assert run(cohort, masks="nowhere") == ExitCode.SETTINGS
    assert "nowhere: expected a folder of predictions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "0"), "expected at least 1, found 0"),
        (("--seed", "-1"), "expected at least 0, found -1"),
    ],
)
def test_wrong_numbers(
    cohort: Path, capsys: Captured, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(cohort, *options)
    assert words in capsys.readouterr().err


# ---- Where predictions come from ----------------------------------------------------------------


def test_cases_that_were_trained_on_are_warned_of(cohort: Path, capsys: Captured) -> None:
    masks = cohort.parent / "masks"
    write_record(masks, "case_000", False, True)
    write_record(masks, "case_001", True)
    (masks / "case_002.json").unlink()
    assert run(cohort) == ExitCode.DONE
    output = capsys.readouterr().out
    seen = "Warning: 2 of 4 cases were seen in training by a model that predicted them"
    unknown = "Warning: Whether 1 of 4 cases were seen in training is unknown"
    assert seen in output
    assert unknown in output
    document = summary(cohort)
    assert document["seen_in_training"] == {"seen": 2, "unseen": 1, "unknown": 1}
    assert [model["name"] for model in document["models"]] == ["model 0", "model 1"]
    of_case = {row["case"]: row["seen_in_training"] for row in document["cases"]}
    assert of_case == {"case_000": True, "case_001": True, "case_002": None, "case_003": False}
    assert seen.removeprefix("Warning: ") in (cohort.parent / "out" / "summary.md").read_text()


# ---- Against another set of predictions ---------------------------------------------------------


@pytest.fixture
def compared(cohort: Path) -> Path:
    """Beside `masks` the folder `others`: moved, perfect, moved, perfect; of unknown origin."""
    for index, kind in enumerate(("shifted", "perfect", "shifted", "perfect")):
        write_prediction(cohort.parent / "others", f"case_{index:03d}", kind, name="{case}.nii.gz")
    return cohort


def comparison(cohort: Path) -> Any:
    return json.loads((cohort.parent / "out" / "comparison.json").read_text())


def test_two_sets_of_predictions(compared: Path, capsys: Captured) -> None:
    folder = compared.parent
    assert run(compared, "--against", str(folder / "others")) == ExitCode.DONE
    document = comparison(compared)
    assert document["predictions"]["folder"] == "masks"
    assert document["other"]["folder"] == "others"
    assert document["other"]["seen_in_training"] == {"seen": 0, "unseen": 0, "unknown": 4}
    assert (document["num_cases"], document["num_tests"]) == (4, 9)
    dice = document["columns"]["dice_WT"]
    # 1 - 7/8, 0 - 1, 0, 0: one better, one worse; ranks 1 and 2 cannot tell anything.
    assert dice["mean"] == 2.875 / 4
    assert dice["other_mean"] == 3.75 / 4
    assert dice["mean_difference"] == -0.875 / 4
    assert (dice["num_better"], dice["num_worse"], dice["num_equal"]) == (1, 1, 2)
    assert dice["p_value"] == 1.0
    assert dice["note"] == "fewer than 6 cases differ: p cannot fall below 0.05"
    distance = document["columns"]["hd95_mm_WT"]
    assert distance["mean_difference"] == pytest.approx((373.13 - 1.2) / 4, abs=HEADER_MM)
    assert (distance["num_better"], distance["num_worse"]) == (1, 1)
    output = capsys.readouterr().out
    assert "masks against others: differences are the first minus the second" in output
    low, high = (f"{end:.3f}" for end in dice["interval_95"])
    assert row_of(
        output,
        *("dice_WT", "0.719", "0.938", "-0.219", low, "to", high),
        *("1", "/", "1", "/", "2", "1.0000*"),
    )
    assert any(line.startswith("lesion_dice_WT ") for line in output.splitlines())
    assert "not corrected for the number of tests (9 here)" in output
    assert "* fewer than 6 cases differ: p cannot fall below 0.05" in output
    assert "Warning: others: Whether 4 of 4 cases were seen in training is unknown" in output
    assert output.rstrip().endswith(f"{folder / 'out' / 'comparison.json'}")


def test_the_differences_case_by_case(compared: Path) -> None:
    assert run(compared, "--against", str(compared.parent / "others")) == ExitCode.DONE
    table = rows(compared.parent / "out" / "comparison.csv")
    found = {row["case"]: float(row["difference_dice_WT"]) for row in table}
    # In the order of cases.csv: worst first.
    assert list(found.items()) == [
        ("case_001", -1.0),
        ("case_002", 0.0),
        ("case_000", 0.125),
        ("case_003", 0.0),
    ]
    assert float(table[0]["dice_WT"]) == 0.0
    assert float(table[0]["other_dice_WT"]) == 1.0
    assert "difference_lesion_dice_ET" in table[0]


def test_against_itself_nothing_differs(cohort: Path, capsys: Captured) -> None:
    assert run(cohort, "--against", str(cohort.parent / "masks")) == ExitCode.DONE
    of_dice = comparison(cohort)["columns"]["dice_WT"]
    assert (of_dice["p_value"], of_dice["num_equal"]) == (1.0, 4)
    assert of_dice["note"] == "no case differs: p is 1"
    assert "* no case differs: p is 1" in capsys.readouterr().out


def test_folders_of_one_name_are_told_apart(compared: Path, capsys: Captured) -> None:
    folder = compared.parent / "second"
    folder.mkdir()
    (compared.parent / "others").rename(folder / "masks")
    assert run(compared, "--against", str(folder / "masks")) == ExitCode.DONE
    assert f"{compared.parent.name}/masks against second/masks" in capsys.readouterr().out


def test_problems_of_both_sets_at_once(compared: Path, capsys: Captured) -> None:
    write_prediction(compared.parent / "masks", "case_000", values=(0, 1, 2, 3))
    others = compared.parent / "others"
    write_prediction(others, "case_003", name="{case}.nii.gz", values=(0, 1, 2, 3))
    assert run(compared, "--against", str(others)) == ExitCode.DATA
    error = capsys.readouterr().err
    assert "masks/case_000_seg.nii.gz: label-coding" in error
    assert "others/case_003.nii.gz: label-coding" in error


def test_a_case_that_only_one_set_has(compared: Path, capsys: Captured) -> None:
    others = compared.parent / "others"
    (others / "case_003.nii.gz").unlink()
    assert run(compared, "--against", str(others)) == ExitCode.DATA
    assert "case_003.nii.gz in others; found neither" in capsys.readouterr().err
