"""python -m pipeline.train LIST [--preset original] [--output-dir DIR] [--resume] ...

Train the network on the cases of a data list, validate it, and keep the best and the last state.
The list is checked first; the run folder then holds settings.json, best.pt, last.pt, the one before
it (last.previous.pt), metrics.csv, log.txt and TensorBoard's files. SIGTERM, SIGINT and SIGUSR1 end
it after the iteration, with its state saved, or at once before the first one. The same command with
--resume goes on from the newest whole checkpoint, and gives the same result to the last bit.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import (
    add_list_argument,
    add_training_arguments,
    console,
    main_of,
    new_parser,
    open_log,
)

if TYPE_CHECKING:
    from pipeline.config import Settings

LOG = logging.getLogger("pipeline.train")  # also where this module is __main__
DEFAULT_PRESET = "original"


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("train", __doc__)
    add_list_argument(parser)
    parser.add_argument(
        "--preset", help="original (the article; default), quick (for a CPU) or strong (for a GPU)"
    )
    add_training_arguments(parser)
    parser.add_argument("--fold", type=int, help="fold to validate on; the others are trained on")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/latest"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output-dir")
    parser.add_argument(
        "--init-weights",
        type=Path,
        metavar="FILE",
        help="a checkpoint, or the article's model2.h5, to start from; a resumed run has its own",
    )
    parser.add_argument(
        "--digests", type=Path, metavar="FILE", help="as of check: remember what was found good"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Check the data, then train as the command line says."""
    # Before NumPy and torch start threads.
    from pipeline.model.heap import settle_memory

    memory = settle_memory()
    from pipeline.config import build_settings, require_told_by_checkpoints
    from pipeline.data.checking import check_visibly, raise_if_errors
    from pipeline.data.datalist import read_datalist
    from pipeline.data.files import sweep_temporaries
    from pipeline.data.lock import locked_folder
    from pipeline.errors import unwrapping
    from pipeline.model.device import choose_device
    from pipeline.training.room import require_usable
    from pipeline.training.run import write_metrics
    from pipeline.training.start import train
    from pipeline.training.stored import finished_progress, stored_state
    from pipeline.training.summary import print_summary, write_summary

    folder = arguments.output_dir
    device = choose_device(arguments.device)
    require_usable(folder)
    datalist = read_datalist(arguments.list, allow_outside_root=arguments.allow_outside_root)
    state = stored_state(folder, resume=arguments.resume)
    if arguments.resume and state is None:
        print(f"There is no checkpoint to resume from in {folder}: the run starts anew.")
    settings = _settings(arguments, None if state is None else state.content["settings"])
    progress = finished_progress(
        state,
        folder,
        max_epochs=settings.training.max_epochs,
        early_stopping=settings.training.early_stopping,
    )
    # Where `last` is damaged, it is written anew from the checkpoint that is whole.
    if state is not None and progress is not None and not state.remark:
        require_told_by_checkpoints(build_settings(state.content["settings"]), settings)
        print("This run is finished; there is nothing left to train.")
        with locked_folder(folder):
            # A kill after the last checkpoint leaves a table without its last row, or half a file.
            sweep_temporaries(folder)
            write_metrics(progress, folder)
            print_summary(write_summary(progress, folder), folder, console())
        return
    if settings.validation.every_epochs is None:
        datalist = datalist.without_fold(settings.fold)
    problems = check_visibly(
        datalist,
        border_crop=settings.preprocessing.border_crop,
        mask_nonfinite=settings.loading.mask_nonfinite,
        digests=arguments.digests,
    )
    print(raise_if_errors(datalist, problems))
    with locked_folder(folder), open_log(folder), unwrapping():
        LOG.info(memory)
        progress = train(
            datalist,
            folder=folder,
            settings=settings.model_dump(mode="json"),
            device=device,
            # Read again: until the lock was ours, another process could have gone on with it.
            state=stored_state(folder, resume=arguments.resume),
            init_weights=arguments.init_weights,
            cache_dir=arguments.cache_dir,
        )
        print_summary(write_summary(progress, folder), folder, console())


def _settings(arguments: argparse.Namespace, stored: dict[str, Any] | None) -> Settings:
    from pipeline.config import build_settings, parse_assignments, preset, read_config, resumed

    layers: list[dict[str, Any]] = [
        read_config(arguments.config) if arguments.config else {},
        parse_assignments(arguments.assignments),
        {
            name: value
            for name, value in (("fold", arguments.fold), ("seed", arguments.seed))
            if value is not None
        },
        {"loading": {"mask_nonfinite": True}} if arguments.mask_nonfinite else {},
    ]
    if stored is None:
        return build_settings(preset(arguments.preset or DEFAULT_PRESET), *layers)
    base = preset(arguments.preset) if arguments.preset else stored
    return resumed(build_settings(stored), build_settings(base, *layers))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
