"""Processes of a side: started, watched and measured; what goes wrong is told with their words."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.cli import EXIT_CODES, ExitCode
from pipeline.errors import PipelineError, ResourceError, RunStopped

ROOT = Path(__file__).resolve().parents[2]
INTERVAL_S = 1.0
SAVE_S = 60.0
PATIENCE_S = 120.0  # for a process that was asked to stop: it may be saving its state
KIB = 1024
LAST_LINES = 12


@dataclass(frozen=True)
class Usage:
    """What processes took: seconds by the clock, of the processor, and resident bytes at most.

    The bytes are of all processes together, pages that they share counted once (Linux' PSS).
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0

    def plus(self, other: Usage) -> Usage:
        """Return both in turn."""
        return Usage(
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
            max(self.peak_bytes, other.peak_bytes),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


Usages = dict[str, Usage]
LabelOf = Callable[[Sequence[str]], str | None]


class Watch:
    """Looks at a process and its descendants, and sums what they take by their labels.

    A process that `label_of` gives a label from its command line is counted under it, with all its
    descendants. One that lives for less than the time between two looks may be missed.
    """

    def __init__(self, label_of: LabelOf) -> None:
        self.label_of = label_of
        self._seconds: dict[tuple[str, int], float] = {}
        self._cpu_seconds: dict[tuple[str, int], float] = {}
        self._peaks: dict[str, int] = {}

    def look(self, process: psutil.Process) -> None:
        """Take one sample of the tree below `process`, which may end meanwhile."""
        resident: dict[str, int] = {}
        self._look(process, None, resident)
        for label, num_bytes in resident.items():
            self._peaks[label] = max(num_bytes, self._peaks.get(label, 0))

    def usages(self) -> Usages:
        """Return what was seen so far."""
        return {
            label: Usage(_sum_of(self._seconds, label), _sum_of(self._cpu_seconds, label), peak)
            for label, peak in self._peaks.items()
        }

    def _look(self, process: psutil.Process, label: str | None, resident: dict[str, int]) -> None:
        with suppress(psutil.Error):
            children = process.children()
            if label is None and (label := self.label_of(process.cmdline())) is not None:
                self._seconds[label, process.pid] = time.time() - process.create_time()
            if label is not None:
                times = process.cpu_times()
                self._cpu_seconds[label, process.pid] = times.user + times.system
                resident[label] = resident.get(label, 0) + proportional_bytes(process.pid)
            for child in children:
                self._look(child, label, resident)


def proportional_bytes(pid: int) -> int:
    """Return the resident bytes of a process, shared pages in parts; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * KIB
    return 0


def run_measured(
    command: Sequence[str],
    *,
    what: str,
    log: Path,
    environment: Mapping[str, str],
    label_of: LabelOf = lambda _: "all",
    save: Callable[[Usages], None] = lambda _: None,
) -> Usages:
    """Run `command`, its output appended to `log`, and return what it took by label.

    `save` is given what was seen so far each minute and at the end, also where the process fails
    or this one is asked to stop; the process and its children are then stopped first.

    Raises:
        PipelineError: The process failed: the kind that its exit code stands for, with its last
            lines. `RunStopped` if it was stopped and can go on.
    """
    watch = Watch(label_of)
    saved = time.monotonic()
    with log.open("ab") as stream:
        process = psutil.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C reaches it once, through this process
        )
        try:
            while process.poll() is None:
                watch.look(process)
                if time.monotonic() > saved + SAVE_S:
                    saved = time.monotonic()
                    save(watch.usages())
                with suppress(psutil.TimeoutExpired):
                    process.wait(timeout=INTERVAL_S)
        finally:
            _stop(process)
            save(watch.usages())
    if process.returncode:
        raise _error(process.returncode, what=what, log=log)
    return watch.usages()


def _stop(process: psutil.Popen) -> None:
    """Ask the process to stop if it still runs, and see that nothing of it goes on."""
    if process.poll() is not None:
        return
    with suppress(psutil.Error):
        below = process.children(recursive=True)
        process.terminate()
        psutil.wait_procs([process], timeout=PATIENCE_S)
        for each in (process, *below):
            with suppress(psutil.Error):
                each.kill()
    process.wait()


def _sum_of(seconds: Mapping[tuple[str, int], float], label: str) -> float:
    return sum(value for (name, _), value in seconds.items() if name == label)


def _error(code: int, *, what: str, log: Path) -> PipelineError:
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    kinds = {int(number): kind for kind, number in EXIT_CODES.items()}
    text = f"{what}: ended with {code}. The end of {log.name}:\n" + "\n".join(lines)
    if code == ExitCode.RESUMABLE:
        return RunStopped(text)
    return kinds.get(code, ResourceError)(text)
