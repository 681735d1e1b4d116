"""What a case is between the steps of its segmentation: open, predicted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.data.datalist import Case
from pipeline.errors import Problem


class Stopwatch:
    """Seconds of each step of a case, by the clock that nobody sets."""

    def __init__(self) -> None:
        self.noted: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        """Begin a step after a pause."""
        self._last = time.monotonic()

    def note(self, name: str) -> None:
        """End a step, with which the next one begins."""
        now = time.monotonic()
        self.noted[name] = round(now - self._last, 3)
        self._last = now


@dataclass(frozen=True)
class OpenCase:
    """A case on the network's grid, one `prepared` item for each member, and what it is made of.

    `num_voxels` and `affine` are those of the case's own grid, `inputs` the digests of its images,
    `warnings` what was noticed when they were read.
    """

    case: Case
    inputs: Mapping[str, Any]
    prepared: Sequence[Mapping[str, Any]]
    num_voxels: int
    affine: np.ndarray
    watch: Stopwatch
    warnings: Sequence[Problem] = ()

    def without_images(self) -> OpenCase:
        """Return what is left to know of it once the network has seen it."""
        return replace(self, prepared=())


@dataclass(frozen=True)
class Prediction:
    """What the networks say of a case, on its own grid.

    `classes` are uint8 (X, Y, Z), `maps` float32 (C, X, Y, Z) by their names, `told` goes into the
    record as it is.
    """

    classes: np.ndarray
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
