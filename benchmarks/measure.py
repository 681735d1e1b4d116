"""Two ways to the same result, measured alternately in one process: times, faults, peak memory."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # what Linux takes for: the peak of the resident memory begins anew
KIB = 1024
IDLE_PERCENT = 15.0  # of all cores
IDLE_SECONDS = 0.3
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Run:
    """One run of one side.

    `seconds` by the clock, `cpu_seconds` of all threads, `page_faults` served without the disk,
    `peak_bytes` of resident memory above what was there before, `busy_percent` of the processor's
    cores by others just before.
    """

    seconds: float
    cpu_seconds: float
    page_faults: int
    peak_bytes: int
    busy_percent: float


@dataclass(frozen=True)
class Side:
    """All runs of one side; the first one, which warms caches up, is left out."""

    name: str
    runs: tuple[Run, ...]

    def median(self, what: str = "seconds") -> float:
        """Return the median over the runs of a field of `Run`."""
        return statistics.median(getattr(run, what) for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """What was measured, the goal it is held against, and what was found the same.

    Args:
        key: of the goal, such as "C3"; several comparisons may share it.
        what: measured, in words.
        reference: the other side.
        ours: our side.
        goal: the largest ratio ours / reference that reaches the goal; None where there is none.
        of: the field of `Run` that is compared.
        same: how both results were compared, and how far they are apart.
        data: what it was measured on.
        notes: anything a reader should know.
    """

    key: str
    what: str
    reference: Side
    ours: Side
    goal: float | None
    same: str
    data: str
    of: str = "seconds"
    notes: tuple[str, ...] = field(default=())

    @property
    def ratios(self) -> list[float]:
        """The ratio ours / reference of each round."""
        pairs = zip(self.ours.runs, self.reference.runs, strict=True)
        return [
            getattr(ours, self.of) / max(getattr(other, self.of), 1e-9) for ours, other in pairs
        ]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: a busy moment hits both sides of a round."""
        return statistics.median(self.ratios)

    @property
    def reaches_goal(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        return None if self.goal is None else self.ratio <= self.goal

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **asdict(self),
            "ratio": self.ratio,
            "ratios": self.ratios,
            "reaches_goal": self.reaches_goal,
        }


def compare(
    key: str,
    what: str,
    *,
    reference: tuple[str, Callable[[], Any]],
    ours: tuple[str, Callable[[], Any]],
    same: Callable[[Any, Any], str],
    goal: float | None,
    data: str,
    of: str = "seconds",
    repeats: int = 5,
    notes: Sequence[str] = (),
) -> Comparison:
    """Run both sides in turn, `repeats` + 1 times each, and compare what they return.

    Args:
        reference: name and function of the other side.
        ours: name and function of our side.
        same: is given both results of the first round and says how far they are apart; raises
            AssertionError where they are not the same.
        repeats: rounds that count.
        key, what, goal, data, of, notes: see `Comparison`.
    """
    sides: dict[str, list[Run]] = {"reference": [], "ours": []}
    first = {name: side[1]() for name, side in (("reference", reference), ("ours", ours))}
    verdict = same(first["reference"], first["ours"])
    first.clear()
    for number in range(repeats):
        # Each side goes first in every other round.
        pair = [("reference", reference[1]), ("ours", ours[1])]
        for name, function in pair if number % 2 == 0 else reversed(pair):
            sides[name].append(measure(function))
    return Comparison(
        key=key,
        what=what,
        reference=Side(reference[0], tuple(sides["reference"])),
        ours=Side(ours[0], tuple(sides["ours"])),
        goal=goal,
        same=verdict,
        data=data,
        of=of,
        notes=tuple(notes),
    )


def measure(function: Callable[[], Any]) -> Run:
    """Run `function` once, after waiting for a processor that has nothing else to do."""
    gc.collect()
    busy = wait_until_idle()
    before = _resident_bytes("VmRSS")
    CLEAR_REFS.write_text(RESET_PEAK)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cpu, start = time.process_time(), time.perf_counter()
    result = function()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = _resident_bytes("VmHWM") - before
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    del result
    return Run(seconds, cpu_seconds, faults, max(peak, 0), busy)


def wait_until_idle() -> float:
    """Wait, a minute at most, until others leave the processor; return its load in percent."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        busy = psutil.cpu_percent(interval=IDLE_SECONDS)
        if busy < IDLE_PERCENT or time.monotonic() > deadline:
            return busy


def _resident_bytes(field_name: str) -> int:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field_name:
            return int(value.split()[0]) * KIB
    raise LookupError(field_name)
