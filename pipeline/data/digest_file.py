"""The digest file: which cases were read whole and found good, so that they are not read again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.data.case_report import CaseReport
from pipeline.data.datalist import Case
from pipeline.data.file_state import case_state
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json
from pipeline.errors import DataError, Problem, SettingsError

FORMAT = "brain-tumour-segmentation: digests of checked cases, 1"
OPENING = json_bytes({"format": FORMAT})[:-3]  # what each of our files begins with
KEYS = {"format", "sha256", "cases"}
CASE_KEYS = {"state", "warnings", "digests"}
SHA256 = re.compile(r"[0-9a-f]{64}")
PROBLEM_KEYS = {field.name for field in fields(Problem)}


@dataclass(frozen=True)
class Known:
    """What the check of a case in this `state` (`case_state`) found: no error, so it is short."""

    state: str
    warnings: tuple[Problem, ...]
    digests: dict[str, str]


class DigestFile:
    """The cases that the file at `path` knows, and what this run adds to them.

    Only a case without an error is remembered, and only if its files did not change while they were
    read. The file's own SHA-256 tells damage, not forgery: keep it where only you can write.
    `complaint` says why an existing file is not believed; it is empty otherwise.
    """

    def __init__(self, path: Path, *, recheck: bool = False) -> None:
        """Read the file, if there is one; `recheck` takes nothing from it but replaces it.

        Raises:
            SettingsError: There is no folder that the file could be in.
        """
        if not path.parent.is_dir():
            raise SettingsError(f"{path}: expected a file in an existing folder. Make the folder.")
        self.path = path
        self.recheck = recheck
        self.complaint = ""
        self._recalled: set[str] = set()
        self._is_ours = True
        self._cases: dict[str, Known] = {}
        if path.exists() or path.is_symlink():
            self._read()

    @property
    def num_recalled(self) -> int:
        """How many cases have not been read because they are as they were."""
        return len(self._recalled)

    def state_of(self, case: Case, *, expectations: Mapping[str, Any]) -> str | None:
        """Return what `recall` and `remember` know the case by; None if it cannot be told."""
        return case_state(case, expectations=expectations)

    def recall(self, case: Case, state: str | None) -> CaseReport | None:
        """Return what was found when the case was last read, if it is still in that state."""
        known = self._cases.get(case.id)
        if self.recheck or known is None or known.state != state:
            return None
        self._recalled.add(case.id)  # one step, for several threads
        return CaseReport(case, list(known.warnings), dict(known.digests))

    def remember(self, report: CaseReport, state: str | None) -> None:
        """Keep what was found of a case in `state`; forget it if there is an error or no state."""
        self._cases.pop(report.case.id, None)
        if state is not None and all(problem.severity != "error" for problem in report.problems):
            self._cases[report.case.id] = Known(state, tuple(report.problems), report.digests)

    def save(self) -> None:
        """Write the file, unless somebody else's is in its place. Raises ResourceError."""
        if self._is_ours:
            cases = {case: asdict(known) for case, known in sorted(self._cases.items())}
            content = {"format": FORMAT, "sha256": _digest(cases), "cases": cases}
            replace_file(self.path, json_bytes(content))

    def _read(self) -> None:
        try:
            document = read_json(self.path)
            self._cases = _cases_of(document)
        except (DataError, ValueError) as error:
            self._is_ours = _begins_as_ours(self.path)
            self.complaint = f"{self.path.name} is not believed: {error} Every case is read. " + (
                "The file will be replaced."
                if self._is_ours
                else "It is not a file of this check and stays as it is; name another one."
            )


def _cases_of(document: Any) -> dict[str, Known]:
    """Return the cases of the file's content; ValueError says what is wrong with it."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"expected the format '{FORMAT}'.")
    if set(document) != KEYS or not isinstance(document["cases"], dict):
        raise ValueError(f"expected the keys {', '.join(sorted(KEYS))}.")
    if document["sha256"] != _digest(document["cases"]):
        raise ValueError("its content does not have the SHA-256 that it states.")
    return {case: _known_of(case, entry) for case, entry in document["cases"].items()}


def _known_of(case: str, entry: Any) -> Known:
    if not isinstance(entry, dict) or set(entry) != CASE_KEYS:
        raise ValueError(f"{case}: expected the keys {', '.join(sorted(CASE_KEYS))}.")
    state, warnings, digests = entry["state"], entry["warnings"], entry["digests"]
    is_sound = (
        _is_sha256(state)
        and isinstance(warnings, list)
        and all(_is_warning(warning, case) for warning in warnings)
        and isinstance(digests, dict)
        and all(map(_is_sha256, digests.values()))
    )
    if not is_sound:
        raise ValueError(f"{case}: expected SHA-256 digests and warnings of this case.")
    return Known(state, tuple(Problem(**warning) for warning in warnings), digests)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def _is_warning(value: Any, case: str) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == PROBLEM_KEYS
        and all(isinstance(text, str) for text in value.values())
        and (value["case"], value["severity"]) == (case, "warning")
    )


def _digest(cases: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(cases)).hexdigest()


def _begins_as_ours(path: Path) -> bool:
    """Tell a damaged file of ours, or an empty one, from a file that is somebody else's."""
    try:
        with path.open("rb") as file:
            return path.is_file() and OPENING.startswith(file.read(len(OPENING)))
    except OSError:
        return False  # what cannot be read is not replaced either
