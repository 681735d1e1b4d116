"""What the verbs share: exit codes, the console, and how an error becomes one readable message."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import (
    NO_SPACE,
    DataError,
    NumericalError,
    PipelineError,
    ResourceError,
    RunStopped,
    SettingsError,
)
from pipeline.signals import Interrupted, heed_parent, raised_signals

if TYPE_CHECKING:
    from rich.console import Console


LOG_NAME = "log.txt"
STDOUT = 1  # its file descriptor


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


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every verb that trains takes: settings, the seed, the data's faults, the cache."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.NAME=VALUE",
        dest="assignments",
        help="change one setting, e.g. training.max_epochs=10; may be repeated",
    )
    parser.add_argument("--seed", type=int, help="of weights, order, augmentation and dropout")
    parser.add_argument(
        "--mask-nonfinite", action="store_true", help="take voxels that are NaN or infinite for 0"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="keep preprocessed cases there, compressed, for this run and later ones",
    )


def console(*, stderr: bool = False) -> Console:
    """Return a console for text and tables; imported late, so that `--help` stays quick."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to `run_verb`; rich would end the process with 1."""
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return Screen(stderr=stderr, soft_wrap=True, highlight=False)


@contextmanager
def open_log(folder: Path) -> Iterator[None]:
    """Send what the project reports to the screen and, with times, to `log.txt` in `folder`.

    A symbolic link planted under that name is replaced, not followed.

    Raises:
        ResourceError: The file cannot be opened; within, also where a line cannot be written.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    project = logging.getLogger("pipeline")
    screen = logging.StreamHandler(sys.stdout)
    file = _LogFile(folder / LOG_NAME)
    previous = project.level
    project.setLevel(logging.INFO)
    for handler in (screen, file):
        project.addHandler(handler)
    try:
        # A line must not land in the middle of a progress bar.
        with logging_redirect_tqdm([project]):
            yield
    except (Exception, KeyboardInterrupt) as error:
        text = f"{type(error).__name__}: {error}"
        # Where this line does not fit on the disk either, `error` is still what is to be told.
        with suppress(ResourceError):
            file.handle(project.makeRecord(project.name, logging.ERROR, "", 0, text, (), None))
        raise
    finally:
        project.setLevel(previous)
        for handler in (screen, file):
            project.removeHandler(handler)
            handler.close()


class _LogFile(logging.Handler):
    """Appends to a file: a line is there whole, or `ResourceError` is raised.

    `logging.FileHandler` prints a traceback for each line that the disk has no room for, goes on,
    and follows links.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.name_shown = path.name
        try:
            if path.is_symlink():
                path.unlink()
            # Without O_NONBLOCK, a pipe planted under this name would hold the command up.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self.descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise self._error(error) from error
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            os.close(self.descriptor)
            raise ResourceError(f"{path.name}: expected a file; found a device. Remove it.")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        content = f"{self.format(record)}\n".encode("utf-8", errors="backslashreplace")
        num_before = os.fstat(self.descriptor).st_size
        try:
            while content:
                content = content[os.write(self.descriptor, content) :]
        except OSError as error:
            os.ftruncate(self.descriptor, num_before)
            raise self._error(error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)
        super().close()

    def _error(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self.name_shown}: cannot be written: {_reason(error)}.")


def run_verb(work: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call `work(arguments)` and turn its outcome into an exit code, with one readable message.

    A signal ends it with `RESUMABLE`: what a verb writes is there whole or not at all, so that the
    command can be repeated; what is finished then, depends on the verb. A bug of ours (any other
    exception outside the family) is not swallowed: it shows its traceback and ends with 1.
    """
    try:
        with raised_signals():
            heed_parent()
            work(arguments)
            sys.stdout.flush()
    except (PipelineError, KeyboardInterrupt, MemoryError, OSError) as error:
        told = _told(error)
        _drop_unwritable_output()
        if told is None:
            raise
        if arguments.debug:
            traceback.print_exc()
        print(f"{type(told).__name__}: {told}", file=sys.stderr)
        return EXIT_CODES[type(told)]
    return ExitCode.DONE


def _drop_unwritable_output() -> None:
    """Give up what is buffered for a full disk or a closed pipe.

    The interpreter would try it once more, and turn the exit code into 120.
    """
    try:
        sys.stdout.flush()
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, STDOUT)
        os.close(descriptor)


def _reader_is_gone() -> bool:
    """Whether the output is a pipe that nobody reads any more."""
    output = select.poll()
    output.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _told(error: BaseException) -> PipelineError | None:
    """Return what the user is told of `error`; None where it is a bug of ours."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, KeyboardInterrupt):
        name = error.signal_name if isinstance(error, Interrupted) else "Ctrl-C"
        return RunStopped(f"stopped by {name}; no file is half-written. Repeat the command.")
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return ResourceError("what reads the output has ended before the command.")
    if isinstance(error, MemoryError):
        return ResourceError("out of memory. End other programs, or use a machine with more.")
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        name = Path(error.filename).name if error.filename else "a file or the output"
        return ResourceError(f"{name}: {_reason(error)}.")
    return None


def _reason(error: OSError) -> str:
    """Return why a file cannot be written, in words, with a remedy."""
    if error.errno in NO_SPACE:
        return "the disk is full. Free some space or choose another folder"
    return f"{error.strerror}. Choose a folder that can be written to"


def main_of(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
) -> int:
    """Parse `argv` and run the verb: the whole body of every verb's `main`."""
    return run_verb(work, parser.parse_args(argv))
