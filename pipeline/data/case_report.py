"""What the check of one case found."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.datalist import Case
from pipeline.errors import Problem


@dataclass(frozen=True)
class CaseReport:
    """What is wrong with one case, and the digest of each of its images by file name."""

    case: Case
    problems: list[Problem]
    digests: dict[str, str]
