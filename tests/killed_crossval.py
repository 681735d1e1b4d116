"""python tests/killed_crossval.py FOLDER NUM_KILLS

Cross-validate, then once more while everything that belongs to it is killed (SIGKILL) again and
again, at random moments of one stage after the other, and the same command repeated; compare what
is left in the end. All processes are forked by this one, so that the kills fall into the work and
not into the imports. FOLDER gets the cases, `reference` and, with kills, `killed`, and what they
said.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline import crossval, infer, train
from pipeline.crossvalidation import processes
from pipeline.crossvalidation.processes import Command
from pipeline.data.files import TEMPORARY_NAME
from pipeline.model import speed
from pipeline.model.checkpoint import ENSEMBLE

PRELOADED = (infer, train)  # what the processes begin with
OPTIONS = (
    "--device=cpu",
    "--no-report",
    "--set=preprocessing.border_crop=[[1, 1], [1, 1], [1, 1]]",
    "--set=network.settings.num_levels=2",
    "--set=network.settings.num_filters=4",
    # With these, the masks have something of each region.
    "--set=training.loss=dice_ce",
    "--set=training.learning_rate=0.03",
    "--set=training.max_epochs=4",
    "--set=checkpoint.every_iterations=3",
)
NUM_CASES = 6
NUM_FOLDS = 3
COMPARED = ("summary.json", "summary.md", "crossval.json", "settings.json", ENSEMBLE)
# What the log says where a stage begins.
STAGES = ("Fold 1: training", "Fold 2: predicting", "Masks: ", "Scores: ", "Ensemble: ")
MOST_S = 0.4  # from there to the kill
PATIENCE_S = 120  # more than a whole run takes on a busy machine


class Forked:
    """A verb in a forked process, as far as `subprocess.Popen` is used."""

    def __init__(self, command: Command) -> None:
        sys.stdout.flush()
        self.exit_code: int | None = None
        self.process = os.fork()
        if self.process == 0:
            # Its own lock lies in memory that forked processes share.
            tqdm.set_lock(threading.RLock())
            main = importlib.import_module(f"pipeline.{command.verb}").main
            _end(main(list(command.arguments)))

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        if self.exit_code is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            self.exit_code = os.waitstatus_to_exitcode(status) if process else None
        return self.exit_code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.process, number)


def _end(exit_code: int) -> None:
    sys.stdout.flush()
    os._exit(exit_code)


def start(root: Path, out: Path) -> int:
    """Start a cross-validation, in a process group of its own, and return its id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    tqdm.set_lock(threading.RLock())
    with out.with_name(f"{out.name}.output").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    # A pool of OpenMP's threads does not survive a fork.
    torch.set_num_threads(1)
    # Measured for one sentence of the log, it takes as long as all the rest of such a small run.
    speed.flop_per_second = lambda device, **_: 1e9
    processes.start = lambda command, **_: Forked(command)  # type: ignore[assignment]
    _end(crossval.main([str(root / "data" / "cohort.json"), "-o", str(out), *OPTIONS]))
    return 0


def finish(root: Path, out: Path) -> float:
    """Let a cross-validation come to its end; return the seconds that it took."""
    begun = time.monotonic()
    status = os.waitpid(start(root, out), 0)[1]
    assert status == 0, out.with_name(f"{out.name}.output").read_text()
    return time.monotonic() - begun


def kill_in(stage: str, root: Path, out: Path, *, generator: random.Random) -> None:
    """Start a cross-validation and kill it, with all its processes, in a stage."""
    log = out / "log.txt"
    # Where the last kill came after the end, there would be nothing left to do. The summary is
    # what is written last.
    (out / "summary.json").unlink(missing_ok=True)
    num_told = log.stat().st_size if log.is_file() else 0
    process = start(root, out)
    begun = time.monotonic()
    while not (log.is_file() and stage in log.read_text()[num_told:]):
        assert time.monotonic() - begun < PATIENCE_S, stage
        assert os.waitpid(process, os.WNOHANG) == (0, 0), f"it ended before {stage}"
        time.sleep(0.002)
    time.sleep(generator.uniform(0, MOST_S))
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


def check(out: Path, reference: Path) -> None:
    """Assert that whatever has a final name is whole and right."""
    for path in [*out.glob("masks/*.nii.gz"), *out.glob("fold_*/masks/*.nii.gz")]:
        if not TEMPORARY_NAME.fullmatch(path.name):
            expected = (reference / path.relative_to(out)).read_bytes()
            assert path.read_bytes() == expected, path
    for name in COMPARED:
        if (out / name).is_file():
            assert (out / name).read_bytes() == (reference / name).read_bytes(), name


def names_in(folder: Path) -> set[str]:
    """Return the names of all files below a folder; TensorBoard's have the time in theirs."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "tensorboard" not in path.parts}


def main(root: Path, num_kills: int) -> None:
    """Make the reference, kill, check, complete, compare."""
    from conftest import make_cohort

    (root / "data").mkdir(parents=True)
    make_cohort(root / "data", num_cases=NUM_CASES, num_folds=NUM_FOLDS)
    reference, out = root / "reference", root / "killed"
    whole_s = finish(root, reference)
    print(f"reference: {whole_s:.1f} s", flush=True)
    if num_kills == 0:
        return
    generator = random.Random(num_kills)  # noqa: S311 - moments, no secrets
    for number in range(num_kills):
        kill_in(STAGES[number % len(STAGES)], root, out, generator=generator)
        check(out, reference)
    finish(root, out)
    check(out, reference)
    # What a killed writer left is swept where the next one begins.
    left = {name for name in names_in(out) if not TEMPORARY_NAME.fullmatch(Path(name).name)}
    difference = {name for name in left ^ names_in(reference) if "previous" not in name}
    assert not difference, difference
    print(f"{num_kills} kills; the rerun completed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
