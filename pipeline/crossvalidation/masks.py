"""The final out-of-fold masks: cleaned with thresholds that their cases had no part in."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from nibabel.affines import voxel_sizes
from tqdm import tqdm

from pipeline.crossvalidation.plan import Plan
from pipeline.crossvalidation.thresholds import Thresholds
from pipeline.data.datalist import Case
from pipeline.data.files import sweep_temporaries
from pipeline.data.json_files import read_json
from pipeline.data.loading import class_indices
from pipeline.data.nifti import read_volume, write_volume
from pipeline.data.prediction_files import PROBABILITIES, map_path, mask_path, record_path
from pipeline.data.voxel_volume import region_volumes_ml
from pipeline.evaluation.scoring import default_num_workers
from pipeline.inference.cleaning import clean_classes
from pipeline.inference.label_files import write_label_files
from pipeline.inference.records import finished_record, outputs_of, write_record
from transforms import classes_to_values

ORIGIN = "cross_validation"


def write_masks(plan: Plan, thresholds: Mapping[int, Thresholds]) -> None:
    """Clean the masks of every fold with its thresholds into the one folder of all masks.

    Beside each mask are its probabilities, which cleaning does not change, and the record of how
    it was made. What is there already, made of the same, stays.

    Raises:
        ResourceError: A file could not be written.
    """
    plan.masks.mkdir(exist_ok=True)
    sweep_temporaries(plan.masks)
    write_label_files(plan.masks, plan.datalist.labels)
    work = [(fold, case) for fold, cases in plan.cases.items() for case in cases]
    write = partial(_write, plan, thresholds)
    executor = ThreadPoolExecutor(default_num_workers())
    try:
        done = executor.map(lambda each: write(*each), work)
        for _ in tqdm(done, desc="Cleaning", total=len(work), unit="case", disable=None):
            pass
    finally:
        executor.shutdown(cancel_futures=True)


def _write(plan: Plan, thresholds: Mapping[int, Thresholds], fold: int, case: Case) -> None:
    raw = read_json(record_path(plan.raw_masks(fold), case.id))
    origin = {
        ORIGIN: {"fold": fold, "thresholds": dict(thresholds[fold]), "before": raw["outputs"]}
    }
    if finished_record(plan.masks, case.id, origin) is not None:
        return
    paths, told = _clean(plan, case, source=plan.raw_masks(fold), thresholds=thresholds[fold])
    told["cleaning"] = raw["cleaning"] + told["cleaning"]
    # "request" is that of another folder, whose masks these no longer are.
    kept = {key: value for key, value in raw.items() if key != "request"}
    record = kept | told | origin | {"outputs": outputs_of(paths)}
    write_record(plan.masks, case.id, record)


def _clean(
    plan: Plan, case: Case, *, source: Path, thresholds: Thresholds
) -> tuple[list[Path], dict[str, Any]]:
    """Write a case's files; return them, and what their record is to say of the mask."""
    values = tuple(plan.datalist.labels.values())
    mask, affine = read_volume(mask_path(source, case.id), dtype=None)
    arguments: dict[str, Any] = dict(thresholds)
    regions = plan.datalist.region_classes()
    classes, changes = clean_classes(
        class_indices(mask, values=values),
        regions=regions,
        spacing_mm=voxel_sizes(affine),
        **arguments,
    )
    cleaned = classes_to_values(classes[None], values=values)[0].numpy()
    paths = [mask_path(plan.masks, case.id)]
    write_volume(paths[0], cleaned, affine=affine, dtype=cleaned.dtype)
    probabilities = map_path(source, case.id, PROBABILITIES)
    if plan.probabilities:
        paths.append(map_path(plan.masks, case.id, PROBABILITIES))
        _link(probabilities, paths[-1])
    volumes_ml = region_volumes_ml(classes, regions=regions, affine=affine)
    return paths, {"cleaning": changes, "volumes_ml": volumes_ml}


def _link(source: Path, path: Path) -> None:
    """Give `source` a second name, which costs no disk; copy it where the disk has no such names.

    A symbolic link would not be taken for a file of ours.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp.{path.name}")
    try:
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(path)
    finally:
        # Between two names of one file, `replace` does nothing.
        temporary.unlink(missing_ok=True)
