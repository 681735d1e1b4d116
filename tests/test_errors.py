"""The family of exceptions and the text of a `Problem`."""

from __future__ import annotations

import pickle

import pytest

from pipeline.errors import DataError, PipelineError, Problem, SettingsError, unwrapping

PROBLEM = Problem(
    case="case_1",
    kind="missing-file",
    file="case_1_t1.nii.gz",
    expected="a file",
    found="none",
    remedy="Add it.",
)


def test_a_problem_says_where_what_and_what_to_do() -> None:
    expected = "case_1, case_1_t1.nii.gz: missing-file: expected a file; found none. Add it."
    assert str(PROBLEM) == expected


def test_a_problem_without_a_file_does_not_pretend_to_one() -> None:
    problem = Problem("case_1", "fold", "", "0 or 1", "2", "Change it.")
    assert str(problem) == "case_1: fold: expected 0 or 1; found 2. Change it."


def test_a_problem_is_plain_json() -> None:
    assert PROBLEM.to_dict() == {
        "case": "case_1",
        "kind": "missing-file",
        "file": "case_1_t1.nii.gz",
        "expected": "a file",
        "found": "none",
        "remedy": "Add it.",
        "severity": "error",
    }


def test_problems_sort_by_case_first() -> None:
    first = Problem("a", "z", "z", "", "", "")
    assert sorted([PROBLEM, first]) == [first, PROBLEM]


def test_data_error_lists_all_problems() -> None:
    other = Problem("case_2", "fold", "", "0", "1", "Change it.")
    error = DataError.of(PROBLEM, other)
    assert str(error) == f"{PROBLEM}\n{other}"
    assert error.problems == (PROBLEM, other)


def test_data_error_keeps_its_problems_on_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(DataError.of(PROBLEM)))  # noqa: S301 - made in this line
    assert error.problems == (PROBLEM,)
    assert str(error) == str(PROBLEM)


def test_every_error_is_of_the_family() -> None:
    with pytest.raises(PipelineError, match="nothing here"):
        raise DataError("nothing here")


def test_our_own_error_comes_out_of_the_library_s() -> None:
    def wrapped(inner: Exception) -> None:
        try:
            try:
                raise inner
            except Exception as error:
                raise RuntimeError("applying transform") from error
        except RuntimeError as error:
            raise RuntimeError("loading") from error

    with pytest.raises(DataError, match="case_7"), unwrapping():
        wrapped(DataError("case_7"))
    with pytest.raises(SettingsError, match="as it is"), unwrapping():
        raise SettingsError("as it is")
    with pytest.raises(RuntimeError, match="loading"), unwrapping():
        wrapped(ValueError("a bug stays what it is"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[2J", r"\x1b[2J"), ("\ud800", r"\ud800"), ("\u202egnp", r"\u202egnp"), ("ö\n", "ö\n")],
)
def test_a_problem_cannot_steer_a_terminal(text: str, shown: str) -> None:
    """File names and headers of strangers come into problems, and problems onto consoles."""
    problem = Problem("a", "kind", text, expected="x", found=text, remedy="y")
    assert (problem.file, problem.found) == (shown, shown)
    str(problem).encode()
