"""The application: data, training, inference and evaluation of brain-tumour segmentation."""

from __future__ import annotations

import sys
from pathlib import Path

SIBLINGS = ("transforms", "networks")


def _prefer_own_siblings() -> None:
    """Keep the working folder from standing in for the packages that belong to this one.

    `python -m` looks there first, and a bundle, in which somebody may well stand while naming it,
    has folders `transforms` and `networks`: their code would be run in place of this project's.
    """
    here = Path.cwd()
    if here != Path(__file__).resolve().parents[1] and any((here / n).exists() for n in SIBLINGS):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]


_prefer_own_siblings()
