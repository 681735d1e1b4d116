"""C12: how long a command takes until it answers, and a training run until its first step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.data import ROOT
from benchmarks.measure import Comparison, compare

VERBS = ("phantom", "make_datalist", "check", "train", "infer", "evaluate", "export")
HELP_S = 0.5
FIRST_STEP_S = 10.0
POLL_S = 0.01
PATIENCE_S = 120.0
COHORT = ("--cases", "3", "--shape", "64", "64", "48", "--spacing", "3")
# The state that is saved after each iteration tells when the first one is over.
TRAINING = ("--fold", "0", "--set", "checkpoint.every_iterations=1")


def run(*, repeats: int) -> list[Comparison]:
    """Measure every verb's help, and the way from the command to the first training step."""
    done = [
        _within(
            HELP_S,
            f"python -m pipeline.{verb} --help",
            partial(python, "-m", f"pipeline.{verb}", "--help"),
            data="no case",
            repeats=repeats,
        )
        for verb in VERBS
    ]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        python("-m", "pipeline.phantom", data, *COHORT)
        listed = data / "list.json"
        python("-m", "pipeline.make_datalist", data, "-o", listed, "--folds", "3")
        runs = count()
        done.append(
            _within(
                FIRST_STEP_S,
                "from the command to the end of the first training step",
                lambda: first_step(listed, Path(name) / f"run{next(runs)}"),
                data="3 phantom cases of 64x64x48 voxels, all cached",
                repeats=repeats,
            )
        )
    return done


def _within(
    limit_s: float, what: str, ours: Callable[[], None], *, data: str, repeats: int
) -> Comparison:
    """Compare with a limit, which is slept through: there is no other side."""
    return compare(
        "C12",
        what,
        reference=("the limit", lambda: time.sleep(limit_s)),
        ours=("ours", ours),
        same=lambda _, __: "a process of its own each time",
        goal=1.0,
        data=data,
        repeats=repeats,
    )


def first_step(listed: Path, folder: Path) -> None:
    """Train until the state after the first iteration is there, and end the run."""
    words = ("-m", "pipeline.train", str(listed), "--output-dir", str(folder), *TRAINING)
    said = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=said, stderr=said) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (folder / "last.pt").exists():
            assert process.poll() is None, f"the training ended with {process.returncode}"
            assert time.monotonic() < deadline, "no step was made"
            time.sleep(POLL_S)
        process.kill()


def python(*words: str | Path) -> None:
    """Run Python with `words`, quietly."""
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
