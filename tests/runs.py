"""Training in a process of its own, which can be signalled, limited and killed.

A server that has imported everything forks them: a start takes a moment instead of seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline import train

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pipeline.train", "pipeline.training.stored", "monai.inferers"])

TINY = (
    "--fold=0",
    "--device=cpu",
    "--set=preprocessing.border_crop=[[1, 1], [1, 1], [1, 1]]",
    "--set=network.settings.num_levels=2",
    "--set=network.settings.num_filters=2",
)


def start_training(
    cohort: Path, folder: Path, *options: str, before: Callable[[], None] | None = None
) -> ForkServerProcess:
    """Start `python -m pipeline.train`; what it says goes to `output_of(folder)`.

    `before` is called in the process first: a function of a module, which can limit it or make
    something fail.
    """
    argv = [str(cohort), f"--output-dir={folder}", *TINY, *options]
    process = CONTEXT.Process(target=_train, args=(argv, output_of(folder), before))
    process.start()
    return process


def output_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.output")


def _train(argv: Sequence[str], output: Path, before: Callable[[], None] | None) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    # As in a command from a shell; this process would start its workers by the server, too.
    multiprocessing.set_start_method("fork", force=True)
    if before is not None:
        before()
    sys.exit(train.main(argv))
