"""What the verbs share: the parser, the exit codes, the log."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import EXIT_CODES, LOG_NAME, console, main_of, new_parser, open_log
from pipeline.errors import (
    DataError,
    NumericalError,
    PipelineError,
    ResourceError,
    RunStopped,
    SettingsError,
)

LOG = logging.getLogger("pipeline.tests")


def run(error: Exception | None, *argv: str) -> int:
    def work(arguments: argparse.Namespace) -> None:
        if error is not None:
            raise error

    return main_of(new_parser("verb", "What it does."), work, list(argv))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("x"), 2),
        (DataError("x"), 3),
        (ResourceError("x"), 4),
        (NumericalError("x"), 5),
        (RunStopped("x"), 75),
    ],
)
def test_exit_codes(error: PipelineError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"{type(error).__name__}: x\n"


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None) == 0
    assert capsys.readouterr() == ("", "")


def test_every_member_of_the_family_has_a_code() -> None:
    assert set(PipelineError.__subclasses__()) == set(EXIT_CODES)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(DataError("broken"), "--debug") == 3
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_bug_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError, match="ours"):
        run(ZeroDivisionError("ours"))


def test_the_parser_names_the_verb_and_takes_no_abbreviations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = new_parser("verb", "What it does.\n  kept as it is")
    assert parser.prog == "python -m pipeline.verb"
    assert "What it does.\n  kept as it is" in parser.format_help()
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--deb"])
    assert "unrecognized arguments: --deb" in capsys.readouterr().err


def test_importing_what_the_verbs_share_does_not_import_torch() -> None:
    # Otherwise --help would take seconds; in a fresh process, because this one has torch.
    code = "import sys, pipeline.cli; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_console_writes_to_the_stream_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console().print("[1, 2]")
    console(stderr=True).print("fault")
    assert capsys.readouterr() == ("[1, 2]\n", "fault\n")


# ---- The log ------------------------------------------------------------------------------------


def test_the_log_goes_to_the_screen_and_with_times_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path):
        LOG.info("epoch %d", 3)
    assert capsys.readouterr().out == "epoch 3\n"
    text = (tmp_path / LOG_NAME).read_text()
    assert text.startswith("20")  # the year of the time stamp
    assert text.endswith(" INFO epoch 3\n")


def test_the_log_is_continued_by_a_resumed_run(tmp_path: Path) -> None:
    for message in ("first", "second"):
        with open_log(tmp_path):
            LOG.info(message)
    assert (tmp_path / LOG_NAME).read_text().count("\n") == 2


def test_an_error_is_logged_with_its_kind_and_raised(tmp_path: Path) -> None:
    # The percent sign must not be taken for a place to fill in.
    with pytest.raises(DataError, match="100 % wrong"), open_log(tmp_path):
        raise DataError("100 % wrong")
    assert (tmp_path / LOG_NAME).read_text().endswith(" ERROR DataError: 100 % wrong\n")


def test_the_project_logger_is_left_as_it_was(tmp_path: Path) -> None:
    project = logging.getLogger("pipeline")
    before = (project.level, list(project.handlers))
    with open_log(tmp_path):
        assert len(project.handlers) == len(before[1]) + 2
    assert (project.level, project.handlers) == before


def test_a_name_that_is_no_text_is_logged_with_escapes(tmp_path: Path) -> None:
    # Python reads the byte FF of a file's name as this surrogate, which UTF-8 cannot write.
    with pytest.raises(DataError, match="case"), open_log(tmp_path):
        raise DataError("case_\udcff")
    assert r"case_\udcff" in (tmp_path / LOG_NAME).read_text()


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LOG_NAME).symlink_to(victim)
    with open_log(folder):
        LOG.info("a line")
    assert victim.read_text() == "mine"
    assert not (folder / LOG_NAME).is_symlink()
    assert "a line" in (folder / LOG_NAME).read_text()
