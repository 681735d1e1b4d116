"""The comparison of `benchmarks.accuracy` in Markdown, with what has to be read beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy_peers.budget import CALIBRATION_S, CALIBRATION_SHARE, LARGEST_PAUSE
from benchmarks.accuracy_peers.machines import CEILINGS, LARGEST_RATIO, Machine, distinct
from pipeline.evaluation.comparison import TEST
from pipeline.evaluation.definitions import STATED_RULE
from pipeline.evaluation.statistics import NUM_RESAMPLES

Document = Mapping[str, Any]

MEAN = "dice_mean"
BACKGROUND = "everything background"
STEPS = "optimiser steps"
UNKNOWN = "unknown"
NOTES = (
    "All sides get the same cases, folds and grid, train each fold from scratch on the other "
    "folds, and use the weights after their last step (ours: averaged over steps where the preset "
    "says so). Masks are brought back to the cases' own grids by each side and scored there by "
    "`pipeline.evaluation`.",
    "The steps of a side are chosen before its training, from the seconds of a few steps on its "
    "machine (the first ones left out), so that they fill the budget, for the first fold; the "
    "others get as many epochs. What the training then took is stated as it was, start of the "
    "process and reading included.",
    "So the minutes of training differ between sides: one whose steps were slower when they were "
    "chosen than later gets fewer of them, and stays below the budget; one whose start and first "
    "steps are slow exceeds it. More minutes are an advantage: they are in the table above.",
    "Also between methods whose steps take the same, the numbers of steps (beside the scores) "
    "differ by the noise of that measurement: a small difference in scores may be one of steps.",
    "Processor time is that of a side's processes and all their children. Memory is the most that "
    "was resident at a time on the host, pages that processes share counted once.",
    "Inference is by the clock, a case, the start of the process and reading included.",
    "What is compared is training within the budget, not what any side reaches without one.",
)
NOTES_ON_OURS = (
    f"Ours: the steps are chosen from {CALIBRATION_S:g} s of training, or {CALIBRATION_SHARE:.0%} "
    "of the budget where that is less, but two epochs at least (how many were timed is told above; "
    "the first one is left out); those of the others from 4 steps, on a GPU 40, which err more, to "
    "either side. A checkpoint after each epoch comes out of the budget, no validation does: there "
    "is none.",
    "Each of ours is a training of its own. Two that differ only in how masks are made "
    "(`inference.*`: mirroring in use, say) get the same number of epochs, and with that the same "
    "networks, on the CPU of one machine; on a GPU, or on two machines, or begun before version "
    "and machine were noted, they are two trainings, and differ by that, too.",
    "Ours: limits for small components are chosen on the masks of the other folds "
    "(`pipeline.crossval`); nnU-Net's search for a postprocessing is not run. An advantage of "
    "ours. Cases are read and preprocessed within the training that is measured.",
    "Presets are developed on data. On the 18 cases of the README, the augmentation of `quick` was "
    "chosen by the scores of fold 0 alone; that it averages all mirrorings, by the scores of all "
    "folds (of the same networks; they gained 0.010 in WT, 0.023 in ET); that half of a bias field "
    "is taken out, by the scores of short trainings, of half of it on folds 0 and 1 and of all of "
    "it on all; its other settings, with an eye on eight cases of all folds. On such a list, ours "
    "have an advantage in that, and new cases may score lower.",
)
NOTES_ON_PEERS = {
    "nnunet": "nnunet: default planner, network, patch, batch, augmentation, loss, SGD and poly "
    "schedule, training by regions; as many workers for augmentation as cores; all mirrorings "
    "averaged. Changed: target spacing, number and length of epochs, one batch of validation an "
    "epoch, which changes no weight. Its plan sees the images of all folds, its weights do not. "
    "Its preprocessing comes before the training and is not measured: an advantage. It takes "
    "250 000 steps by default, and is not tuned for a small budget: a disadvantage. Its validation "
    f"and checkpoints come out of its budget, planned as {LARGEST_PAUSE:.0%} of its steps' time at "
    "most where that is possible: a disadvantage.",
    "segresnet": "segresnet: the bundle brats_mri_segmentation 0.4.2 of MONAI's model zoo; sizes "
    "in voxels divided by the spacing; no mirroring. Cases are kept in memory, and not read in "
    "each epoch: an advantage. It neither validates nor saves checkpoints before its last step: an "
    "advantage. It is meant for 300 epochs of 200 cases, and is not tuned for a small budget: a "
    "disadvantage.",
}


def markdown(content: Document, *, title: str) -> str:
    """Return the tables: scores, differences, costs, notes."""
    parts = [
        f"# {title}",
        _what(content),
        f"Means, and 95 % intervals of them (bootstrap over the cases, {NUM_RESAMPLES} resamples).",
        *_scores(content),
        *(_differences(content) if content["comparisons"] else ()),
        "## What it cost",
        _costs(content),
        *_details(content),
        *_machines(content),
        "## Notes",
        "\n".join(f"- {note}" for note in _notes(content)),
    ]
    return "\n\n".join(parts) + "\n"


def _what(content: Document) -> str:
    task, known = content["task"], _known_machines(content)
    where = _words_of(known[0]) if len(known) == 1 else "The machines are listed below"
    return (
        f"{task['num_cases']} cases of the list {task['list']} (SHA-256 "
        f"{task['list_sha256'][:12]}), folds {', '.join(map(str, task['folds']))}; "
        f"{task['minutes']:g} minutes of training a fold, at {task['spacing_mm']:g} mm, on "
        f"{task['device']} with {task['threads']} threads. {where}."
    )


def _words_of(machine: Machine) -> str:
    if machine is None:
        return UNKNOWN
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB{gpu}; Python "
        f"{machine['python']}, {versions}"
    )


def _known_machines(content: Document) -> list[Machine]:
    every = (each for method in content["methods"].values() for each in method["machines"])
    return distinct(each for each in every if each is not None)


def _machines(content: Document) -> list[str]:
    """Return on which machine, or machines in turn, each method ran, with what was measured."""
    measured = ("threads", *CEILINGS)
    rows = [
        [name, _words_of(machine), *(str((machine or {}).get(key, "")) for key in measured)]
        for name, method in content["methods"].items()
        for machine in method["machines"]
    ]
    head = ["method", "machine", "threads", "arithmetic, GFLOP/s", "copying, GB/s"]
    told = "As measured by the benchmark's own process, with its threads, when a method was begun."
    return ["## Machines", told, _table(head, rows)]


def _notes_on_machines(content: Document) -> list[str]:
    notes = []
    if len(_known_machines(content)) > 1:
        notes.append(
            "**Not all ran on one machine with the same versions** (table of the machines; a "
            f"machine that is quicker by a factor of {LARGEST_RATIO:g} counts as another one, "
            "whatever it is called). The minutes of one allow other numbers of steps than those of "
            "another: compare rows of one machine only."
        )
    unknown = [name for name, method in content["methods"].items() if None in method["machines"]]
    if unknown:
        notes.append(
            f"On which machine and with which versions is not known of {', '.join(unknown)}: begun "
            "before that was noted."
        )
    return notes


def _scores(content: Document) -> list[str]:
    regions = content["regions"]
    dice = [MEAN, *(f"dice_{region}" for region in regions)]
    names = ["mean region Dice", *(f"Dice {region}" for region in regions)]
    first = [
        [
            name,
            *(_interval(method["scores"][column], 3) for column in dice),
            str(method["costs"]["steps"]),
        ]
        for name, method in content["methods"].items()
    ]
    # That of the cases, whichever method it is read from.
    of_any = next(iter(content["methods"].values()))["scores"]
    nothing = [_interval(of_any.get(f"background_{column}"), 3) for column in dice]
    others = [(f"hd95_mm_{region}", f"HD95 {region}, mm", 1) for region in regions]
    others += [(f"lesion_dice_{region}", f"lesion-wise Dice {region}", 3) for region in regions]
    second = [
        [name, *(_interval(method["scores"][column], digits) for column, _, digits in others)]
        for name, method in content["methods"].items()
    ]
    return [
        _table(["method", *names, STEPS], [*first, [BACKGROUND, *nothing, ""]]),
        _table(["method", *(title for _, title, _ in others)], second),
    ]


def _differences(content: Document) -> list[str]:
    regions = content["regions"]
    columns = [(MEAN, "mean region Dice", 3)]
    columns += [(f"dice_{region}", f"Dice {region}", 3) for region in regions]
    columns += [(f"hd95_mm_{region}", f"HD95 {region}, mm", 1) for region in regions]
    columns += [(f"lesion_dice_{region}", f"lesion-wise Dice {region}", 3) for region in regions]
    rows = [
        [
            f"{each['of']} minus {each['minus']}",
            *(_difference(each["differences"][column], digits) for column, _, digits in columns),
        ]
        for each in content["comparisons"]
    ]
    return [
        "## Differences",
        "Mean difference [95 % interval], p; then the cases in which the first is better, and "
        "worse.",
        _table(["methods", *(title for _, title, _ in columns)], rows),
        f"p: {TEST}.",
    ]


def _notes(content: Document) -> list[str]:
    on_peers = [note for name, note in NOTES_ON_PEERS.items() if name in content["methods"]]
    on_machines = _notes_on_machines(content)
    return [*on_machines, *NOTES, *NOTES_ON_OURS, *on_peers, STATED_RULE]


def _costs(content: Document) -> str:
    head = [
        "method",
        "epochs",
        STEPS,
        "seconds a step, when chosen",
        "training a fold, min",
        "processor, min",
        "memory of training, GB",
        "inference a case, s",
        "memory of inference, GB",
    ]
    rows = []
    for name, method in content["methods"].items():
        costs = method["costs"]
        training = costs["training"]
        rows.append(
            [
                name,
                str(costs["epochs"]),
                str(costs["steps"]),
                f"{costs['step_s']:.3g}",
                f"{training['wall_s'] / 60:.1f}",
                f"{training['cpu_s'] / 60:.1f}",
                f"{training['peak_bytes'] / 1e9:.1f}",
                f"{costs['inference_s']:.1f}",
                f"{costs['inference_bytes'] / 1e9:.1f}",
            ]
        )
    return _table(head, rows)


def _details(content: Document) -> list[str]:
    lines = [
        f"- {name}: {_told(method['costs']['details'])}"
        for name, method in content["methods"].items()
    ]
    return ["\n".join(lines)]


def _told(details: Document) -> str:
    """Return nested values in one line, without what they took (which the table says)."""
    told = []
    for name, value in details.items():
        if name == "usage":
            continue
        shown = f"({_told(value)})" if isinstance(value, Mapping) else _listed(value)
        told.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(told)


def _listed(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    separator = ", " if any(isinstance(each, str) for each in value) else " x "
    return separator.join(map(str, value)) or "none"


def _interval(score: Document | None, digits: int) -> str:
    if score is None or score["mean"] is None:
        return ""
    low_high = score["interval_95"]
    shown = f"{score['mean']:.{digits}f}"
    return f"{shown} [{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]" if low_high else shown


def _difference(found: Document, digits: int) -> str:
    low_high = found["interval_95"]
    inside = f" [{low_high[0]:+.{digits}f}, {low_high[1]:+.{digits}f}]" if low_high else ""
    note = f" ({found['note']})" if found["note"] else ""
    return (
        f"{found['mean_difference']:+.{digits}f}{inside}, p {found['p_value']:.2g}; "
        f"{found['num_better']} / {found['num_worse']}{note}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
