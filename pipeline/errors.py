"""The one family of exceptions, and the `Problem` in which every fault of the data is described."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Literal

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or the limit on the size of files is exhausted."""


@dataclass(frozen=True, order=True)
class Problem:
    """One fault found in a case: what it is, where, what was expected, and what to do.

    `kind` is a short stable identifier (``missing-file``, ``label-values``, ...) that scripts can
    rely on. An ``error`` keeps the data list from being used; a ``warning`` is only reported.
    """

    case: str
    kind: str
    file: str
    expected: str
    found: str
    remedy: str
    severity: Literal["error", "warning"] = "error"

    def __post_init__(self) -> None:
        """Escape what a stranger's file could steer a terminal with, or what cannot be encoded."""
        for field in fields(self):
            object.__setattr__(self, field.name, _printable(getattr(self, field.name)))

    def __str__(self) -> str:
        where = f"{self.case}, {self.file}" if self.file else self.case
        return f"{where}: {self.kind}: expected {self.expected}; found {self.found}. {self.remedy}"

    def to_dict(self) -> dict[str, str]:
        """Return the problem as plain JSON values."""
        return asdict(self)


class PipelineError(Exception):
    """Base of all errors that the user can do something about."""


class SettingsError(PipelineError):
    """A wrong command line or a wrong setting."""


class DataError(PipelineError):
    """Wrong data; carries every problem that was found, not only the first."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, *problems: Problem) -> DataError:
        """Build the error whose message is its problems, one a line."""
        return cls("\n".join(str(problem) for problem in problems), problems)


class ResourceError(PipelineError):
    """Not enough disk, memory or GPU memory, or a place that cannot be written to."""


class NumericalError(PipelineError):
    """A loss or a weight that is not a number."""


class RunStopped(PipelineError):  # noqa: N818 - not an error of anybody's: a signal asked for it
    """A signal stopped the run after its state was saved; it can be resumed."""


def _printable(text: str) -> str:
    """Return `text` with all but its printable characters and ends of lines escaped."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )


@contextmanager
def unwrapping() -> Iterator[None]:
    """Raise our own error where a library has wrapped it, as MONAI's chains wrap everything."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, PipelineError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
