"""`python -m pipeline`: the list of verbs, and the way to each."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.__main__ import VERBS, main


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_without_a_verb_it_lists_them(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: python -m pipeline VERB")
    for name, what in VERBS.items():
        assert f"  {name}" in output
        assert what in output


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("trian: there is no such verb\nusage:")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_can_be_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: python -m pipeline.{name}" in capsys.readouterr().out


def test_every_module_with_a_main_is_listed() -> None:
    folder = Path(pipeline.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text()}
    assert modules - {"__main__"} == set(VERBS)


def test_the_verb_gets_the_rest_and_its_code_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = importlib.import_module("pipeline.check")
    monkeypatch.setattr(check, "main", lambda argv: 75 if argv == ["a", "--b"] else 1)
    assert main(["check", "a", "--b"]) == 75
    monkeypatch.setattr(sys, "argv", ["pipeline", "check", "a", "--b"])
    assert main() == 75
