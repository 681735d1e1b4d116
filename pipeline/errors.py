"""The one family of exceptions, and the `Problem` in which every fault of the data is described."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal


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
