"""python -m benchmarks.ablation LIST -o OUT [--rows NAME...] [--minutes M] [--spacing-mm S] ...

What each change from the article's settings is worth: first preset `original`, then one change more
in each row up to preset `quick`, then what preset `strong` has beyond `quick`, and what neither has
and was tried, one change each. A change is one setting, or the whole augmentation; two settings
that mean nothing without each other are one change: another crop, and a schedule with its warm-up.
All rows are cross-validated with the same minutes of training for each fold, as by
`benchmarks.accuracy`, and each is compared with the row that it changes. What is finished is not
done again: a run that was stopped is simply repeated, and rows can be added. OUT then holds
ablation.json, ablation.md, and the scores of each case in ablation_cases.csv, of all rows that are
finished there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy import Pair, add_task_arguments, run, task_of
from benchmarks.accuracy_peers.methods import Method
from pipeline.cli import add_list_argument, main_of
from pipeline.config import build_settings, preset

ORIGINAL, QUICK, STRONG = "original", "quick", "strong"
NAME = "ablation"
TITLE = "What each change is worth"


@dataclass(frozen=True)
class Change:
    """A row: what it is called, and which settings (or whole stages) it takes from a preset."""

    name: str
    keys: tuple[str, ...]


# Each beside the ones above it; the last one completes `quick`. Sharpening goes before z-scores,
# dropout before normalisation: these pairs of changes once were one row each, and with all above
# them the rows that end them are what they were.
TO_QUICK = (
    Change("brain-box", ("preprocessing.border_crop", "preprocessing.brain_box")),
    Change("unsharpened", ("preprocessing.sharpen_strength",)),
    Change("brain-z-score", ("preprocessing.normalization",)),
    Change("dice-loss", ("training.loss",)),
    Change("no-dropout", ("network.settings.dropout",)),
    Change("instance-norm", ("network.settings.norm",)),
    Change("learning-rate", ("training.learning_rate",)),
    Change("gradient-clip", ("training.gradient_clip",)),
    Change("schedule", ("training.schedule", "training.warmup_fraction")),
    Change("8-filters", ("network.settings.num_filters",)),
    Change("augmentation", ("augmentation",)),
    Change("mirrored-in-use", ("inference.flips",)),
    Change(QUICK, ("preprocessing.bias_field_share",)),
)
# Each alone beside `quick`.
TO_STRONG = (
    Change("regions", ("network.outputs",)),
    Change("averaged-weights", ("training.ema_decay",)),
    Change("residual", ("network.settings.residual",)),
    Change("deep-supervision", ("network.settings.deep_supervision",)),
    Change("weight-decay", ("training.weight_decay",)),
    Change("unsmoothed", ("preprocessing.gaussian_sigma",)),
    Change("strong-augmentation", ("augmentation",)),
)
# Each alone beside `quick`; in no preset.
TRIED = (
    # Tumours of low contrast and of small size are rare among twelve cases.
    Method(
        "wider-augmentation",
        QUICK,
        (
            "augmentation.deformation.rotation_degrees=30",
            "augmentation.deformation.scale=1.4",
            "augmentation.appearance.brightness=0.3",
            "augmentation.appearance.offset=0.3",
        ),
    ),
)


def rows() -> tuple[tuple[Method, str | None], ...]:
    """Return the methods in their order, each with the name of the one that it changes."""
    before, assigned = ORIGINAL, list[str]()
    found: list[tuple[Method, str | None]] = [(Method(ORIGINAL, ORIGINAL), None)]
    for change in TO_QUICK:
        assigned += assignments(change, preset_name=QUICK)
        found.append((Method(change.name, ORIGINAL, tuple(assigned)), before))
        before = change.name
    for change in TO_STRONG:
        own = assignments(change, preset_name=STRONG)
        found.append((Method(change.name, QUICK, tuple(own)), QUICK))
    return (*found, *((method, QUICK) for method in TRIED))


def assignments(change: Change, *, preset_name: str) -> list[str]:
    """Return `change` as `--set` takes it, with the values of a preset."""
    settings = build_settings(preset(preset_name)).model_dump(mode="json")
    return [f"{key}={json.dumps(_value(settings, key))}" for key in change.keys]


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_list_argument(parser)
    names = [method.name for method, _ in rows()]
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="NAME",
        choices=names,
        default=names,
        help="run these; each beside the one that it changes, where that is finished in OUT too "
        "(default: all)",
    )
    add_task_arguments(parser)
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Run what is not finished, score all, write the table."""
    known = [method for method, _ in rows()]
    wanted = [method for method in known if method.name in arguments.rows]
    task = task_of(arguments)
    print(run(task, wanted, known=known, pairing=against_the_base, title=TITLE, stem=NAME))


def against_the_base(methods: Sequence[Method]) -> list[Pair]:
    """Return each row with the one that it changes, where both are among `methods`."""
    there = {method.name for method in methods}
    return [(method.name, base) for method, base in rows() if base and {method.name, base} <= there]


def _value(settings: dict[str, Any], key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = value[name]
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ablation and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
