"""What the verbs share: exit codes, the console, and how an error becomes one readable message."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import (
    DataError,
    NumericalError,
    PipelineError,
    ResourceError,
    RunStopped,
    SettingsError,
)

if TYPE_CHECKING:
    from rich.console import Console


LOG_NAME = "log.txt"


class ExitCode(IntEnum):
    """What every verb returns to the shell."""

    DONE = 0
    BUG = 1
    SETTINGS = 2
    DATA = 3
    RESOURCES = 4
    NUMERICAL = 5
    RESUMABLE = 75


EXIT_CODES: dict[type[PipelineError], ExitCode] = {
    SettingsError: ExitCode.SETTINGS,
    DataError: ExitCode.DATA,
    ResourceError: ExitCode.RESOURCES,
    NumericalError: ExitCode.NUMERICAL,
    RunStopped: ExitCode.RESUMABLE,
}


def new_parser(verb: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m pipeline.<verb>`, described by the verb's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline.{verb}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_list_argument(parser: argparse.ArgumentParser) -> None:
    """Add LIST and `--allow-outside-root`, which every verb that reads a data list takes."""
    parser.add_argument("list", type=Path, metavar="LIST", help="the data list, a JSON file")
    parser.add_argument(
        "--allow-outside-root",
        action="store_true",
        help="accept files outside the folder of the list",
    )


def console(*, stderr: bool = False) -> Console:
    """Return a console for text and tables; imported late, so that `--help` stays quick."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False)


@contextmanager
def open_log(folder: Path) -> Iterator[None]:
    """Send what the project reports to the screen and, with times, to `log.txt` in `folder`.

    A symbolic link planted under that name is replaced, not followed.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    project = logging.getLogger("pipeline")
    screen = logging.StreamHandler(sys.stdout)
    path = folder / LOG_NAME
    if path.is_symlink():
        path.unlink()
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    previous = project.level
    project.setLevel(logging.INFO)
    for handler in (screen, file):
        project.addHandler(handler)
    try:
        # A line must not land in the middle of a progress bar.
        with logging_redirect_tqdm([project]):
            yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        file.handle(project.makeRecord(project.name, logging.ERROR, "", 0, text, (), None))
        raise
    finally:
        project.setLevel(previous)
        for handler in (screen, file):
            project.removeHandler(handler)
            handler.close()


def run_verb(work: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call `work(arguments)` and turn its outcome into an exit code, with one readable message.

    A bug of ours (any exception outside the family) is not swallowed: it shows its traceback and
    ends with 1.
    """
    try:
        work(arguments)
    except PipelineError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_CODES[type(error)]
    return ExitCode.DONE


def main_of(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
) -> int:
    """Parse `argv` and run the verb: the whole body of every verb's `main`."""
    return run_verb(work, parser.parse_args(argv))
