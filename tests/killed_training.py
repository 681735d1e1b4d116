"""python tests/killed_training.py FOLDER NUM_KILLS [--seed N] [--set STAGE.NAME=VALUE] ...

Kill `pipeline.train` again and again (SIGKILL), look at every file after each kill, resume, and
compare what it leaves in the end with a run that nothing interrupted. Two kills of three are aimed
at the phase that was hit least so far: a timer of the kernel, set when that phase is entered, ends
the process at a random moment before the phase is over; the others fall anywhere. Every other
attempt has two loader workers, which must not survive. FOLDER gets the cases, the runs and what
they said; `--set` is passed on to them.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from runs import CONTEXT, output_of, start_training

from pipeline.data import checking, datalist
from pipeline.data.files import TEMPORARY_NAME
from pipeline.model import speed
from pipeline.model.checkpoint import LAST, load_checkpoint
from pipeline.training import run, start, stored, summary
from pipeline.training.engines import ResumableTrainer
from pipeline.training.progress import Progress
from pipeline.training.run import METRICS, TrainingRun
from pipeline.training.start import SETTINGS
from pipeline.training.summary import SUMMARY
from pipeline.training.tensorboard import Board

PLACES: tuple[tuple[str, Any, str], ...] = (
    ("start", datalist, "read_datalist"),
    ("start", stored, "stored_state"),
    ("start", start, "_build_model"),
    ("start", TrainingRun, "restore"),
    ("check", checking, "check_visibly"),
    ("caching", start, "_cached_data"),
    ("settings", start, "replace_file"),
    ("iteration", ResumableTrainer, "_iteration"),
    ("saving last", TrainingRun, "save_last"),
    ("saving best", run, "save_checkpoint"),
    ("validation", TrainingRun, "_validate"),
    ("TensorBoard", Board, "__init__"),
    ("TensorBoard", Board, "add_hyper_parameters"),
    ("TensorBoard", Board, "add_iteration"),
    ("TensorBoard", Board, "add_validation"),
    ("TensorBoard", Board, "close"),
    ("metrics", run, "write_metrics"),
    ("summary", summary, "write_summary"),
    ("summary", summary, "print_summary"),
)
"""Where a run is in which phase: phase, module or class, function."""

BEFORE_TRAINING = ("start", "check", "caching", "settings")
PHASES = tuple(dict.fromkeys(phase for phase, _, _ in PLACES))
OPTIONS = (
    # With these, nearly every epoch is the best so far.
    "--set=network.settings.num_filters=4",
    "--set=training.learning_rate=0.0003",
    "--set=training.max_epochs=6",
    "--set=training.accumulation_steps=2",
    "--set=checkpoint.every_iterations=3",
    "--set=validation.num_pictures=1",
)
NUM_CASES = 12
IMPORTS = ("pipeline.train", "pipeline.training.start", "torch._dynamo", "torch._inductor.config")
"""What the server imports, so that kills fall into the work and not into the imports."""

PATIENCE_S = 120  # more than a whole run takes on a busy machine
WORKERS_LAST_S = 30  # torch's workers look after their parent every 5 s


# ---- In the process that is killed --------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """Kill in the place `PLACES[place]`, once so many iterations are done."""

    place: int
    num_iterations: int
    seed: int


class Marks:
    """What a run tells of itself in a file that outlives it.

    Its phase, and the seconds that the last call of each place took.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(np.dtype(np.float64).itemsize * (1 + len(PLACES))))
        values = np.memmap(path, dtype=np.float64, mode="r+")
        self._phase, self.seconds = np.split(values, [1])

    @property
    def phase(self) -> str:
        """The phase that the run is in, or was killed in."""
        return PHASES[int(self._phase[0])]

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase[0] = PHASES.index(phase)


class _Event(ctypes.Structure):
    """`struct sigevent`."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal_number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


class DeathTimer:
    """Lets the kernel kill this process after so many seconds.

    A thread would have to wait for Python's lock, and so kill between two steps, but never within.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("librt.so.1", use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _Event(signal_number=signal.SIGKILL, notify=0)  # SIGEV_SIGNAL
        made = self._library.timer_create(
            time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)
        )
        assert made == 0, os.strerror(ctypes.get_errno())

    def set(self, seconds: float) -> None:
        """Start it anew; 0 stops it."""
        nanoseconds = math.ceil(seconds * 1e9)
        # `struct itimerspec`: the interval of repetitions, then the first time.
        times = (ctypes.c_long * 4)(0, 0, *divmod(nanoseconds, 1_000_000_000))
        assert self._library.timer_settime(self._timer, 0, times, None) == 0


class Watch:
    """Marks in which phase this process is, and kills it in the place aimed at."""

    def __init__(self, marks: Marks, aim: Aim | None) -> None:
        self.marks = marks
        self.aim = aim
        self.progress = Progress()
        self.timer = None if aim is None else DeathTimer()
        self.random = random.Random(None if aim is None else aim.seed)  # noqa: S311 - no secrets

    def watched(self, place: int) -> Callable[..., Any]:
        """Return the function of `PLACES[place]`, watched."""
        phase, owner, name = PLACES[place]
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            outer, self.marks.phase = self.marks.phase, phase
            is_target = self._set_timer(place)
            begun = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self.marks.seconds[place] = time.perf_counter() - begun
                if is_target and self.timer is not None:
                    self.timer.set(0)  # too late: the next time
                self.marks.phase = outer

        return call

    def _set_timer(self, place: int) -> bool:
        if self.aim is None or self.timer is None or self.aim.place != place:
            return False
        if self.progress.iteration < self.aim.num_iterations:
            return False
        expected_s = self.marks.seconds[place] or 0.01
        self.timer.set(self.random.uniform(1e-6, expected_s))
        return True


def watch(path: Path, aim: Aim | None) -> None:
    """Watch this process, which has a session of its own: its workers can be told by that."""
    os.setsid()
    # Measured for one sentence of the log, it takes as long as all the rest of such a small run.
    speed.flop_per_second = lambda device, **_: 1e9
    watched = Watch(Marks(path), aim)
    for place, (_, owner, name) in enumerate(PLACES):
        setattr(owner, name, watched.watched(place))
    go = TrainingRun.go

    def train_and_end(self: TrainingRun) -> Any:
        watched.progress = self.progress
        watched.marks.phase = "iteration"  # and what lies between two of them
        progress = go(self)
        watched.marks.phase = "summary"  # and all that comes after
        return progress

    TrainingRun.go = train_and_end  # type: ignore[method-assign]


# ---- In the process that kills ------------------------------------------------------------------


class Campaign:
    """Kills and resumes; counts what was hit."""

    def __init__(self, root: Path, *, seed: int, options: Sequence[str]) -> None:
        from conftest import make_cohort  # not in the processes that are killed, as pytest is slow

        self.root = root
        self.options = (*OPTIONS, *options)
        self.random = random.Random(seed)  # noqa: S311 - moments, no secrets
        self.hits = Counter(dict.fromkeys(PHASES, 0))
        self.num_aimed = self.num_with_workers = self.num_temporaries = self.num_anew = 0
        self.orphans: list[psutil.Process] = []
        self.num_orphans = 0
        root.mkdir(parents=True, exist_ok=True)
        self.cohort = make_cohort(root / "data", num_cases=NUM_CASES)
        self.reference = root / "reference"
        self.marks = Marks(root / "marks")
        CONTEXT.set_forkserver_preload(list(IMPORTS))
        server_ready = CONTEXT.Process(target=int)
        server_ready.start()
        server_ready.join()
        begun = time.monotonic()
        process = self._start(self.reference)
        assert _exit_code(process) == 0, output_of(self.reference).read_text()
        self.whole_s = time.monotonic() - begun
        self.num_iterations = _num_iterations(self.reference)

    @property
    def num_kills(self) -> int:
        """How often a run was killed so far."""
        return self.hits.total()

    def run(self, folder: Path, *, num_kills: int) -> None:
        """Train in `folder`, killed and resumed until it is done, and compare it."""
        from test_run import assert_same_run

        while self._is_killed(folder, may_kill=self.num_kills < num_kills):
            self._check(folder)
        # How the cases are loaded is the one thing that differs: with workers and without.
        assert_same_run(folder, self.reference, apart_from=("loading",))
        self._check(folder)
        assert _names(folder) == _names(self.reference)
        _, alive = psutil.wait_procs(self.orphans, timeout=WORKERS_LAST_S)
        assert not [each for each in alive if _is_alive(each)], "workers survive"
        self.orphans.clear()

    def _is_killed(self, folder: Path, *, may_kill: bool) -> bool:
        """Start or resume the run; return False where it came to its end."""
        num_workers = 2 * (self.num_kills % 2)
        num_done = _num_iterations(folder)
        aim = self._aim(num_done) if may_kill and self.num_kills % 3 < 2 else None
        process = self._start(folder, f"--set=loading.num_workers={num_workers}", aim=aim)
        if may_kill and aim is None:
            # What comes before the first iteration takes its time, too.
            share_left = max(1 - num_done / self.num_iterations, 0.3)
            process.join(self.random.uniform(0, self.whole_s * share_left))
            if process.exitcode is None:
                process.kill()
        exit_code = _exit_code(process)
        assert exit_code in (0, -signal.SIGKILL), output_of(folder).read_text()
        if exit_code == 0:
            return False
        self.hits[self.marks.phase] += 1
        self.num_aimed += aim is not None
        self.num_with_workers += num_workers > 0
        self.num_anew += num_done == 0
        orphans = _processes_of(process.pid)
        self.orphans += orphans
        self.num_orphans += len(orphans)
        return True

    def _start(self, folder: Path, *options: str, aim: Aim | None = None) -> ForkServerProcess:
        self.marks.phase = "start"
        before = functools.partial(watch, self.root / "marks", aim)
        return start_training(
            self.cohort, folder, "--resume", *self.options, *options, before=before
        )

    def _aim(self, num_done: int) -> Aim:
        """Aim at a phase that was hit least, in one of its places: now, later, or at the end."""
        fewest = min(self.hits.values())
        phases = [each for each in PHASES if self.hits[each] == fewest]
        # Few kills should hit what writes.
        later = [each for each in phases if each not in BEFORE_TRAINING]
        phase = self.random.choice(later or phases)
        place = self.random.choice([i for i, (each, _, _) in enumerate(PLACES) if each == phase])
        last = self.num_iterations - 1
        moments = (num_done, self.random.randint(min(num_done, last), last), last)
        num_iterations = 0 if phase in BEFORE_TRAINING else self.random.choice(moments)
        return Aim(place, num_iterations, self.random.randrange(2**32))

    def _check(self, folder: Path) -> None:
        """Assert that whatever has a final name is whole and right."""
        if not folder.is_dir():
            return
        for path in folder.glob("*.pt"):
            load_checkpoint(path)
        expected = {name: (self.reference / name).read_bytes() for name in (METRICS, SUMMARY)}
        if (folder / METRICS).exists():
            assert expected[METRICS].startswith((folder / METRICS).read_bytes())
        if (folder / SUMMARY).exists():
            assert (folder / SUMMARY).read_bytes() == expected[SUMMARY]
        if (folder / SETTINGS).exists():
            json.loads((folder / SETTINGS).read_text())
        self.num_temporaries += any(map(TEMPORARY_NAME.fullmatch, _names(folder)))

    def summary(self, num_runs: int) -> str:
        """Return what was done, in one line."""
        hits = ", ".join(f"{phase} {self.hits[phase]}" for phase in PHASES)
        return (
            f"{self.num_kills} kills ({self.num_aimed} aimed, {self.num_with_workers} with loader "
            f"workers) in {num_runs} runs of {self.whole_s:.1f} s, all equal to the uninterrupted "
            f"one; hit: {hits}; {self.num_temporaries} in the midst of a file, {self.num_anew} "
            f"before the first checkpoint; all of {self.num_orphans} orphaned workers ended"
        )


def _exit_code(process: ForkServerProcess) -> int | None:
    """Wait for the end; None where it does not come: nothing would end that process later."""
    process.join(PATIENCE_S)
    exit_code = process.exitcode
    process.kill()
    return exit_code


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _num_iterations(folder: Path) -> int:
    """Return how many iterations `last` says are done, 0 where there is no such checkpoint."""
    if not (folder / LAST).exists():
        return 0
    return int(load_checkpoint(folder / LAST)["progress"]["counters"]["iteration"])


def _processes_of(session: int | None) -> list[psutil.Process]:
    """Return what is still alive of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == session and _is_alive(process):
                found.append(process)
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """Make the reference, kill until it is enough, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("num_kills", type=int, metavar="NUM_KILLS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    arguments = parser.parse_args(argv)
    options = [f"--set={assignment}" for assignment in arguments.assignments]
    campaign = Campaign(arguments.folder, seed=arguments.seed, options=options)
    num_runs = 0
    while campaign.num_kills < arguments.num_kills:
        num_runs += 1
        campaign.run(arguments.folder / f"run{num_runs}", num_kills=arguments.num_kills)
        print(f"run{num_runs}: {campaign.num_kills} kills so far", flush=True)
    print(campaign.summary(num_runs))


if __name__ == "__main__":
    main()
