"""The gate: a bundle is exported only if it is proven to be the model, and to segment like it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.bundle.components import Config
from pipeline.bundle.gate_files import check_configs, check_sources, check_sums, check_weights
from pipeline.bundle.gate_run import check_bundle_run, check_formats
from pipeline.data.case_inputs import cases_of_folder
from pipeline.data.datalist import Case
from pipeline.data.loading import LoadCase
from pipeline.data.nifti import write_volume
from pipeline.data.phantom import make_phantom
from pipeline.errors import SettingsError
from pipeline.inference.predictor import Predictor
from pipeline.model.trained import TrainedModel

# Large enough for the article's border crop, and made in two seconds.
PHANTOM_SHAPE, PHANTOM_SPACING_MM = (80, 80, 52), 3.0


@dataclass(frozen=True)
class Verification:
    """What was compared, and how closely it agreed.

    Attributes:
        case: that was segmented.
        num_voxels: of its mask; all are equal.
        labels: that occur in it.
        probability_difference: the largest.
        ties: for TorchScript and ONNX, the voxels in which two labels were as likely as each other
            and the other one was chosen.
        num_changed: voxels that have another label than with the weights before they were rounded
            to half precision; None where they were not.
    """

    case: str
    num_voxels: int
    labels: tuple[str, ...]
    probability_difference: float
    ties: dict[str, int]
    num_changed: int | None = None


def verify_bundle(
    folder: Path,
    model: TrainedModel,
    *,
    inferer: Config,
    case_folder: Path | None = None,
    unrounded: TrainedModel | None = None,
) -> Verification:
    """Prove that the bundle in `folder` is `model`, and gives the same masks.

    Args:
        folder: of the bundle.
        model: that was exported.
        inferer: arguments of `networks.VolumeInferer`.
        case_folder: holds one case to compare on; a phantom otherwise.
        unrounded: what `model` was before its weights were rounded to the half precision in which
            the bundle stores them; None where it stores them as they are.

    Raises:
        DataError: something differs; it says what, where, and by how much.
        SettingsError: `case_folder` does not hold exactly one case.
    """
    check_sums(folder)
    check_sources(folder)
    check_weights(folder, model, half_precision=unrounded is not None)
    check_configs(folder, model, inferer=inferer)
    with tempfile.TemporaryDirectory(prefix="bundle-gate-") as name:
        workplace = Path(name)
        case = _given_case(case_folder, model) if case_folder else _phantom(model, workplace)
        item = LoadCase(labels=False)(case)
        predictor = _predictor(model, inferer)
        reference = predictor.predict(item)
        ties = check_formats(
            folder, item=item, reference=reference, predictor=predictor, inferer=inferer
        )
        difference = check_bundle_run(
            folder, case=case, reference=reference, model=model, workplace=workplace
        )
        before = None if unrounded is None else _predictor(unrounded, inferer).predict(item)
    classes = reference["classes"]
    names = list(model.header["labels"])
    return Verification(
        case=case.id,
        num_voxels=classes.numel(),
        labels=tuple(names[index] for index in classes.unique().tolist()),
        probability_difference=difference,
        ties=ties,
        num_changed=None if before is None else int((before["classes"] != classes).sum()),
    )


def _predictor(model: TrainedModel, inferer: Config) -> Predictor:
    how = {name: inferer[name] for name in ("window", "overlap", "flips")}
    return Predictor([model], device=torch.device("cpu"), brain_only=inferer["content_only"], **how)


def _given_case(folder: Path, model: TrainedModel) -> Case:
    cases = cases_of_folder(folder, modalities=model.header["modality"])
    if len(cases) != 1:
        raise SettingsError(f"--case {folder}: expected the folder of one case; found {len(cases)}")
    return cases[0]


def _phantom(model: TrainedModel, workplace: Path) -> Case:
    """Write a phantom with an image for each modality; what the network sees in it is no matter."""
    phantom = make_phantom(shape=PHANTOM_SHAPE, spacing_mm=PHANTOM_SPACING_MM, seed=0, index=1)
    images = list(phantom.images.values())
    paths = []
    for index, name in enumerate(model.header["modality"]):
        image = phantom.images.get(name, images[index % len(images)])
        paths.append(workplace / f"phantom_{index}.nii.gz")
        write_volume(paths[-1], image, affine=phantom.affine, dtype=np.int16)
    return Case(
        id="phantom",
        subject="phantom",
        images=tuple(paths),
        label=None,
        fold=None,
        label_values=model.label_values,
    )
