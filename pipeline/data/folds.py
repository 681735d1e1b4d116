"""Dealing cases into folds: by subject, equal in size, and the same for the same seed for ever."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from pipeline.errors import SettingsError


def assign_folds(subjects: Mapping[str, str], *, num_folds: int, seed: int) -> dict[str, int]:
    """Return the fold (0 to `num_folds` - 1) of each case, from {case: subject}.

    A subject's cases all come into the same fold: a network must not be validated on a patient
    whom it was trained on. The subjects with the most cases are dealt first, each into the fold
    that has the fewest cases; between equals a digest of seed and name decides, not a generator of
    random numbers, whose sequence may change from one version to the next. The order in which the
    cases are given does not matter.

    Raises `SettingsError` where `num_folds` is not between 1 and the number of subjects; no
    subjects need no folds.
    """
    num_cases = Counter(subjects.values())
    if num_cases and not 1 <= num_folds <= len(num_cases):
        raise SettingsError(
            f"--folds {num_folds}: expected 1 to {len(num_cases)}, the number of labelled subjects."
        )
    order = sorted(num_cases, key=lambda subject: (-num_cases[subject], _digest(subject, seed)))
    sizes = [0] * num_folds
    fold_of_subject = {}
    for subject in order:
        fold = sizes.index(min(sizes))
        fold_of_subject[subject] = fold
        sizes[fold] += num_cases[subject]
    return {case: fold_of_subject[subject] for case, subject in subjects.items()}


def _digest(subject: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{subject}".encode()).digest()
