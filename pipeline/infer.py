"""python -m pipeline.infer -m MODEL (LIST | CASE_FOLDER ... | --flair F --t1 F ...) -o OUT

Segment cases with a trained network, or with several as an ensemble. MODEL is a run's folder, a
checkpoint or an exported bundle. Each mask lies on its case's own grid, in the dataset's own label
values, and is opened again before it gets its name; <case>.json beside it says how it was made.
What is finished and unchanged is skipped, so that an interrupted command is simply repeated.
Images may be NIfTI, NRRD, MetaImage or folders with a DICOM series; modalities go by name.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import console, main_of, new_parser, open_log

if TYPE_CHECKING:
    from pipeline.data.datalist import Case, DataList
    from pipeline.errors import Problem
    from pipeline.inference.session import Outcome
    from pipeline.model.trained import TrainedModel

LOG = logging.getLogger("pipeline.infer")  # also where this module is __main__
MODALITIES = ("flair", "t1", "t1ce", "t2")
WHOLE = "whole"


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("infer", __doc__)
    parser.add_argument(
        "-m",
        "--model",
        type=Path,
        action="append",
        required=True,
        help="a run's folder, a checkpoint or a bundle; several make an ensemble",
    )
    parser.add_argument("-o", "--output-dir", type=Path, required=True, metavar="OUT")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace masks in OUT that were made otherwise"
    )
    _add_cases(parser)
    _add_settings(parser)
    return parser


def _add_cases(parser: argparse.ArgumentParser) -> None:
    cases = parser.add_argument_group("which cases")
    cases.add_argument(
        "inputs", nargs="*", type=Path, metavar="LIST or CASE_FOLDER", help="a data list or folders"
    )
    chosen = cases.add_mutually_exclusive_group()
    chosen.add_argument("--fold", type=int, help="only the validation cases of this fold of LIST")
    chosen.add_argument("--cases", nargs="+", default=[], metavar="ID", help="only these of LIST")
    cases.add_argument(
        "--allow-outside-root",
        action="store_true",
        help="accept files outside the folder of LIST",
    )
    for name in MODALITIES:
        cases.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"the {name} of one case")
    cases.add_argument("--case-id", help="name of the case given by files")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    settings = parser.add_argument_group("how (stored with the masks)")
    settings.add_argument(
        "--window",
        metavar="N[,N,N]",
        help="sliding window in voxels, as 96 or 96,96,64; or 'whole' (default: as the model "
        "says, mostly as memory allows)",
    )
    settings.add_argument("--overlap", type=float, help="of windows, 0 to 1 (default: 0.5)")
    settings.add_argument(
        "--tta",
        action=argparse.BooleanOptionalAction,
        help="mean over all mirrorings (default: as the model says)",
    )
    settings.add_argument(
        "--outside-brain",
        dest="brain_only",
        action="store_false",
        default=None,
        help="look for tumour outside the box of the brain too, which takes longer",
    )
    settings.add_argument(
        "--full-precision",
        dest="amp",
        action="store_false",
        default=None,
        help="float32 on a GPU too, which takes longer",
    )
    settings.add_argument("--probabilities", action="store_true", help="write them as NIfTI too")
    settings.add_argument(
        "--uncertainty", type=int, metavar="N", help="N passes with dropout: entropy, as NIfTI"
    )
    settings.add_argument("--seed", type=int, help="of the dropout (default: 0)")
    settings.add_argument("--fill-holes", action="store_true", help="enclosed background")
    settings.add_argument("--largest-component", action="store_true", help="keep one tumour only")
    settings.add_argument(
        "--min-et-ml",
        type=float,
        metavar="ML",
        help="a smaller enhancing tumour becomes core; 0: none does (default: as the model says)",
    )
    settings.add_argument(
        "--min-component-ml",
        type=float,
        metavar="ML",
        help="a smaller component of the tumour becomes background; 0: none does (default: as the "
        "model says)",
    )
    settings.add_argument(
        "--mask-nonfinite", action="store_true", help="take voxels that are NaN or infinite for 0"
    )
    settings.add_argument(
        "--resample-to", metavar="MODALITY", help="bring the others to its grid if grids differ"
    )


def work(arguments: argparse.Namespace) -> None:
    """Segment the cases that the command line names."""
    from pipeline.data.files import require_writable

    require_writable(arguments.output_dir)  # before the seconds that importing torch takes
    from pipeline.model.heap import settle_memory

    memory = settle_memory()  # before NumPy and torch start threads
    from pipeline.config import build_inference_settings
    from pipeline.model.device import choose_device
    from pipeline.model.trained import default_inference, load_model, require_alike

    said = _settings(arguments)
    build_inference_settings(said)  # before the models are read
    device = choose_device(arguments.device)
    models = [load_model(path) for path in arguments.model]
    require_alike(models)
    settings = build_inference_settings(default_inference(models, said=said) | said)
    datalist = _datalist(arguments)
    labels = _labels(models[0], datalist)
    cases, unusable = _cases(arguments, models[0], datalist)
    _segment(
        arguments,
        cases,
        unusable,
        models=models,
        labels=labels,
        settings=settings.model_dump(mode="json"),
        device=device,
        memory=memory,
        subjects_known=datalist is not None,
    )


def _segment(
    arguments: argparse.Namespace,
    cases: Sequence[Case],
    unusable: Sequence[Problem],
    *,
    models: Sequence[TrainedModel],
    labels: dict[str, int],
    settings: dict[str, Any],
    device: Any,
    memory: str,
    subjects_known: bool,
) -> None:
    """Segment `cases`, and raise DataError with `unusable` and what was wrong with any of them."""
    from pipeline.data.files import sweep_temporaries
    from pipeline.data.lock import locked_folder
    from pipeline.errors import DataError
    from pipeline.inference.label_files import write_label_files
    from pipeline.inference.records import claim_folder
    from pipeline.inference.segmentation import Segmenter
    from pipeline.inference.session import announce, segment_cases
    from pipeline.signals import StopRequest

    folder = arguments.output_dir
    with locked_folder(folder), open_log(folder), StopRequest() as stop:
        LOG.info(memory)
        sweep_temporaries(folder)
        segmenter = Segmenter(
            models,
            folder=folder,
            settings=settings,
            labels=labels,
            device=device,
            num_cases=len(cases),
            subjects_known=subjects_known,
        )
        claim_folder(folder, segmenter.request(), overwrite=arguments.overwrite)
        write_label_files(folder, labels)
        announce(segmenter, cases)
        for problem in unusable:
            LOG.error("not segmented: %s", problem)
        outcome = segment_cases(cases, segmenter=segmenter, stop=stop)
    _conclude(outcome, folder)
    problems = [*unusable, *outcome.problems]
    if problems:
        num_cases = len(cases) + len({problem.case for problem in unusable})
        verdict = f"{num_cases - len(outcome.records)} of {num_cases} cases have no mask:"
        raise DataError("\n".join([verdict, *map(str, problems)]), problems)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was said on the command line; what was not keeps its default."""
    values = {
        "window": _window(arguments.window),
        "overlap": arguments.overlap,
        "flips": arguments.tta,
        "amp": arguments.amp,
        "brain_only": arguments.brain_only,
        "probabilities": arguments.probabilities,
        "uncertainty_samples": arguments.uncertainty,
        "seed": arguments.seed,
        "fill_holes": arguments.fill_holes,
        "largest_component": arguments.largest_component,
        "min_et_volume_ml": arguments.min_et_ml or None,
        "min_component_ml": arguments.min_component_ml or None,
        "resample_to": arguments.resample_to,
        "mask_nonfinite": arguments.mask_nonfinite,
    }
    # Said, though it is None: "whole", or a limit of 0.
    spoken = {
        "window": arguments.window == WHOLE,
        "min_et_volume_ml": arguments.min_et_ml == 0,
        "min_component_ml": arguments.min_component_ml == 0,
    }
    return {name: value for name, value in values.items() if value is not None or spoken.get(name)}


def _window(text: str | None) -> list[int] | None:
    from pipeline.errors import SettingsError

    if text is None or text == WHOLE:
        return None
    words = text.split(",")
    if len(words) not in (1, 3) or not all(map(_is_edge, words)):
        raise SettingsError(
            f"--window: expected a number of voxels, three with commas, or '{WHOLE}'; found {text}"
        )
    edges = [int(word) for word in words]
    return edges * 3 if len(edges) == 1 else edges


def _is_edge(word: str) -> bool:
    return word.isdecimal() and int(word) > 0


def _datalist(arguments: argparse.Namespace) -> DataList | None:
    """Return the data list, if that is what was named."""
    from pipeline.data.datalist import read_datalist
    from pipeline.errors import SettingsError

    lists = [path for path in arguments.inputs if path.suffix.lower() == ".json"]
    if lists and len(arguments.inputs) > 1:
        raise SettingsError("expected one data list, or case folders; found both or several lists.")
    if not lists and (arguments.fold is not None or arguments.cases):
        raise SettingsError("--fold and --cases choose from a data list; found none.")
    if not lists:
        return None
    return read_datalist(lists[0], allow_outside_root=arguments.allow_outside_root)


def _labels(model: TrainedModel, datalist: DataList | None) -> dict[str, int]:
    """Return the voxel values of the masks: the list's own, which must be about the same labels."""
    from pipeline.model.checkpoint import require_same_labels, require_same_modalities

    if datalist is None:
        return dict(model.header["labels"])
    header = datalist.header()
    require_same_modalities(header, model.header)
    require_same_labels(header, model.header)
    return dict(datalist.labels)


def _cases(
    arguments: argparse.Namespace, model: TrainedModel, datalist: DataList | None
) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    """Return the cases to segment, and what is wrong with those in folders that cannot be."""
    from pipeline.data.case_inputs import case_of_files, cases_of_folders
    from pipeline.data.selection import chosen_cases
    from pipeline.errors import DataError, SettingsError

    files = {name: getattr(arguments, name) for name in MODALITIES if getattr(arguments, name)}
    if bool(files) == bool(arguments.inputs):
        raise SettingsError(
            "expected a data list, case folders, or the files of one case "
            f"(--{' --'.join(MODALITIES)}); found {'both' if files else 'none of them'}."
        )
    if datalist is not None:
        return chosen_cases(datalist, fold=arguments.fold, ids=arguments.cases), ()
    modalities = model.header["modality"]
    if files:
        return (case_of_files(files, modalities=modalities, case_id=arguments.case_id),), ()
    cases, unusable = cases_of_folders(arguments.inputs, modalities=modalities)
    if not cases:
        raise DataError.of(*unusable)
    return cases, unusable


def _conclude(outcome: Outcome, folder: Path) -> None:
    from pipeline.data.prediction_files import MASK_SUFFIX
    from pipeline.inference.label_files import ITK_SNAP, SLICER

    num_new = len(outcome.records) - outcome.num_finished_before
    console().print(
        f"{num_new} cases segmented, {outcome.num_finished_before} were finished before\n"
        f"masks:   {folder}/<case>{MASK_SUFFIX}\n"
        f"records: {folder}/<case>.json (volumes, models, settings, versions, times)\n"
        f"labels:  {folder / ITK_SNAP} (ITK-SNAP), {folder / SLICER} (3D Slicer)",
        markup=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
