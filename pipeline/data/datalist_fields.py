"""Typed access to the values of a data list, and the collection of everything wrong with it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pipeline.errors import DataError, Problem

MAX_SHOWN = 60


@dataclass
class Findings:
    """The faults of one data list, collected so that the reader can report all of them at once.

    `where` is the place in the file as one would type it: ``training[3].t1ce``.
    """

    path: Path
    case: str = "data list"
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: str, *, kind: str, expected: str, found: str, remedy: str) -> None:
        """Note one fault, under the case that is being read."""
        file = f"{self.path} at {where}" if where else str(self.path)
        self.problems.append(
            Problem(
                case=self.case,
                kind=kind,
                file=file,
                expected=expected,
                found=found,
                remedy=remedy,
            )
        )

    def wrong_type(self, where: str, value: Any, *, expected: str) -> None:
        """Note a value of the wrong type or outside its range."""
        self.add(
            where,
            kind="wrong-type",
            expected=expected,
            found=shown(value),
            remedy="Correct the value.",
        )

    def missing(self, where: str, *, expected: str) -> None:
        """Note a key that has to be there and is not."""
        self.add(
            where,
            kind="missing-key",
            expected=expected,
            found="no such key",
            remedy="Add it; data_lists/README.md shows the format.",
        )

    def raise_if_any(self) -> None:
        """Raise `DataError` with every fault noted so far."""
        if self.problems:
            raise DataError.of(*self.problems)


def shown(value: Any) -> str:
    """Return a short picture of a JSON value for a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def is_text(value: Any) -> bool:
    """Tell whether `value` is a string that can be printed, with something to see in it."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_integer(value: Any, *, maximum: int) -> bool:
    """Tell whether `value` is an integer from 0 to `maximum`; ``true`` is not one."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum


def check_keys(
    value: dict[str, Any], *, known: Iterable[str], where: str, findings: Findings
) -> None:
    """Note every key of `value` that is not `known`, with the nearest one that is."""
    known = sorted(set(known))
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key.lower(), known, n=1)
            findings.add(
                f"{where}.{key}" if where else key,
                kind="unknown-key",
                expected=f"one of {', '.join(known)}",
                found=shown(key),
                remedy=f"Did you mean {near[0]!r}?" if near else "Remove it.",
            )


@dataclass(frozen=True)
class PathRule:
    """Which paths a data list may name: those inside the folder `root`, unless told otherwise.

    `root` is absolute and without symbolic links. A data list can come from anybody: without this
    rule it could have any file of this machine read, and published in what is made from the case.
    """

    root: Path
    allow_outside_root: bool

    def resolve(self, value: Any, *, where: str, findings: Findings) -> Path | None:
        """Return the absolute path of `value`, or note what is wrong and return None.

        The file itself may be missing: `check` reports that.
        """
        if not is_text(value):
            findings.wrong_type(where, value, expected="the path of a file")
            return None
        if "\\" in value:
            findings.wrong_type(where, value, expected="/ between folders")
            return None
        path = self.root / value
        fault = None if self.allow_outside_root else self._way_out(value, path)
        if fault:
            findings.add(
                where,
                kind="outside-root",
                expected=f"a relative path that stays inside {self.root}",
                found=f"{shown(value)}, {fault}",
                remedy="Move the list beside its data; or, if you trust the list, allow this "
                "with --allow-outside-root.",
            )
        return path

    def _way_out(self, value: str, path: Path) -> str | None:
        if PurePosixPath(value).is_absolute() or PureWindowsPath(value).drive:
            return "an absolute path"
        # realpath, not Path.resolve: that one raises on a loop of links in Python 3.10 to 3.12.
        real = Path(os.path.realpath(path))
        for target in (real, *_targets_in(real)):
            if not target.is_relative_to(self.root):
                return f"which leads to {target}"
        return None


def _targets_in(folder: Path) -> Iterator[Path]:
    """Yield where the files of a DICOM series really are; nothing where `folder` is none."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except OSError:  # a file, or missing, or closed: whoever reads it says so
        return
    for name in names:
        yield Path(os.path.realpath(folder / name))
