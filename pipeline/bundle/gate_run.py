"""The second half of the gate: bundle, TorchScript and ONNX segment a case as the model does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from networks import VolumeInferer
from pipeline.bundle.clean_environment import CleanEnvironment
from pipeline.bundle.components import Config
from pipeline.bundle.configs import input_ids
from pipeline.bundle.contents import CONVERTED
from pipeline.bundle.conversion import torchscript_allowed
from pipeline.bundle.problems import problem
from pipeline.data.datalist import Case
from pipeline.data.json_files import read_json
from pipeline.data.nifti import read_volume
from pipeline.inference.predictor import Predictor
from pipeline.model.trained import TrainedModel
from transforms import classes_to_values

TIME_LIMIT_S = 3600.0
AFFINE_TOLERANCE_MM = 1e-3  # an affine is float32 in the file
# The same sums on the same processor; what is left is the order in which threads add.
PROBABILITY_TOLERANCE = 1e-5
# Another runtime adds in another order. What that does to float32 goes with the largest logit:
# 2e-4 of it was measured for the normalisation of SegResNet in ONNX Runtime, 1e-6 for UNet3D. A
# network with another weight, layer or size differs by far more.
LOGIT_TOLERANCE = 1e-3
# A network that gives logarithms of probabilities is compared by these: of a logarithm near that of
# 0, rounding makes anything. A logit that is 0.07 off, as above, moves a probability by 0.02.
LOGARITHM_TOLERANCE = 1e-2
# The name of the folder that the inputs lie in, and so of the results.
CASE = "case"

Network = Callable[[torch.Tensor], torch.Tensor]


def check_bundle_run(
    folder: Path,
    *,
    case: Case,
    reference: Mapping[str, torch.Tensor],
    model: TrainedModel,
    workplace: Path,
) -> float:
    """Run the bundle in a clean environment and compare its mask and its probabilities.

    Args:
        folder: of the bundle.
        case: what to segment.
        reference: `probabilities` and `classes` of `Predictor`, on the case's own grid.
        model: that made the reference.
        workplace: an empty folder.

    Returns:
        The largest difference of a probability.

    Raises:
        DataError: the run failed, or a voxel, the grid or a probability differs.
    """
    environment = CleanEnvironment(workplace / "environment")
    environment.require_clean(folder)
    results = workplace / "results"
    files = _inputs(case, model, workplace / CASE)
    ids = input_ids(read_json(folder / "configs" / "inference.json"))
    options = [text for name, file in files.items() for text in (f"--{ids[name]}", str(file))]
    environment.run(
        [
            *("-m", "monai.bundle", "run", "--config_file", "configs/inference.json"),
            *options,
            *("--output_dir", str(results), "--save_probabilities", "True", "--device", "cpu"),
        ],
        folder=folder,
        time_limit_s=TIME_LIMIT_S,
    )
    _compare_masks(results / f"{CASE}_seg.nii.gz", reference, model)
    return _compare_probabilities(results / f"{CASE}_probabilities.nii.gz", reference)


def _inputs(case: Case, model: TrainedModel, folder: Path) -> dict[str, Path]:
    """Return links to the case's files by modality.

    Their names are plain: MONAI would take parts of some names for expressions.
    """
    folder.mkdir()
    links = {}
    names = zip(model.header["modality"], case.images, strict=True)
    for index, (name, image) in enumerate(names):
        ending = ".nii.gz" if image.name.lower().endswith(".nii.gz") else image.suffix
        links[name] = folder / f"{index}{ending}"
        links[name].symlink_to(image.absolute())
    return links


def _compare_masks(path: Path, reference: Mapping[str, torch.Tensor], model: TrainedModel) -> None:
    mask, affine = read_volume(path, dtype=None)
    classes = reference["classes"]
    expected = classes_to_values(classes, values=model.label_values)[0].numpy()
    _require("grid", path, expected=expected.shape, found=mask.shape)
    wanted = np.asarray(classes.affine)  # type: ignore[attr-defined]  # a MetaTensor
    if not np.allclose(affine, wanted, rtol=0, atol=AFFINE_TOLERANCE_MM):
        _require("grid", path, expected=wanted.tolist(), found=affine.tolist())
    differing = np.argwhere(mask != expected)
    if len(differing):
        first = tuple(int(index) for index in differing[0])
        raise problem(
            "mask",
            file=path.name,
            expected="the mask of pipeline.infer, voxel for voxel",
            found=f"{len(differing)} of {mask.size} voxels differ, the first at {first}: "
            f"{expected[first]} expected, {mask[first]} found",
        )


def _compare_probabilities(path: Path, reference: Mapping[str, torch.Tensor]) -> float:
    found, _ = read_volume(path, channels=True)
    expected = reference["probabilities"].numpy()
    _require("grid", path, expected=expected.shape, found=found.shape)
    largest = float(np.abs(found - expected).max())
    if not largest <= PROBABILITY_TOLERANCE:
        raise problem(
            "probabilities",
            file=path.name,
            expected=f"those of pipeline.infer to {PROBABILITY_TOLERANCE:g}",
            found=f"a difference of {largest:g}",
        )
    return largest


def _require(kind: str, path: Path, *, expected: object, found: object) -> None:
    if expected != found:
        raise problem(kind, file=path.name, expected=f"{expected}", found=f"{found}")


def check_formats(
    folder: Path,
    *,
    item: Mapping[str, Any],
    reference: Mapping[str, torch.Tensor],
    predictor: Predictor,
    inferer: Config,
) -> dict[str, int]:
    """Segment the case with TorchScript and ONNX, where the bundle has them.

    Args:
        folder: of the bundle.
        item: the loaded case.
        reference: what `predictor` says of it.
        predictor: of one model; its steps before and after the network are used.
        inferer: arguments of `networks.VolumeInferer`.

    Returns:
        For each file the number of voxels in which it breaks a tie otherwise.

    Raises:
        DataError: the logits are not the network's, or a class differs where there is no tie.
    """
    files = {name: file for name, file in CONVERTED.items() if (folder / file).is_file()}
    if not files:
        return {}
    (member,) = predictor.members
    regions = member.model.deciding_regions
    gives_logarithms = bool(regions or member.model.is_ensemble or inferer["flips"])
    prepared = member.prepare(item)
    ties = {}
    with torch.no_grad(), torchscript_allowed():
        image = prepared["image"][None]
        expected = VolumeInferer(**inferer)(image, member.network)
        for name, file in files.items():
            logits = VolumeInferer(**inferer)(image, LOADERS[name](folder / file))
            if gives_logarithms:
                difference = _probability_difference(file, logits, expected)
            else:
                difference = _logit_difference(file, logits, expected)
            classes = member.postprocessing({**prepared, "pred": logits[0]})["classes"]
            ties[file] = _num_ties(file, classes, reference, difference=difference, regions=regions)
    return ties


def _logit_difference(file: str, found: torch.Tensor, expected: torch.Tensor) -> float:
    bound = LOGIT_TOLERANCE * float(expected.abs().max())
    return _difference(file, found, expected, bound=bound, what="logits")


def _probability_difference(file: str, found: torch.Tensor, expected: torch.Tensor) -> float:
    one, other = (torch.softmax(logits, dim=1) for logits in (found, expected))
    return _difference(file, one, other, bound=LOGARITHM_TOLERANCE, what="probabilities")


def _difference(
    file: str, found: torch.Tensor, expected: torch.Tensor, *, bound: float, what: str
) -> float:
    largest = float((found - expected).abs().max())
    if not largest <= bound:
        raise problem(
            "format",
            file=file,
            expected=f"the {what} of the network to {bound:g}",
            found=f"a difference of {largest:g}",
            remedy="Leave this format out; this network is not the same in it.",
        )
    return largest


def _num_ties(
    file: str,
    classes: torch.Tensor,
    reference: Mapping[str, torch.Tensor],
    *,
    difference: float,
    regions: Sequence[Sequence[int]] | None = None,
) -> int:
    """Return in how many voxels a class differs; all must be such that `difference` explains it.

    Where no logit differs by more, no probability differs by more than half of it: the two that
    changed places cannot have been further apart than that, up to the probabilities' own rounding.
    With `regions`, where no probability of a class differs by more, that of a region differs by no
    more than all of its classes together, and a half was as near as that.
    """
    differs = (classes != reference["classes"])[0]
    probabilities = reference["probabilities"]
    if regions is None:
        first, second = probabilities.topk(2, dim=0).values
        margin = first - second
    else:
        inside = torch.stack([probabilities[list(region)].sum(dim=0) for region in regions])
        margin = (inside - 0.5).abs().amin(dim=0)
        difference *= len(probabilities)
    wrong = differs & (margin > difference + PROBABILITY_TOLERANCE)
    if wrong.any():
        place = tuple(int(index) for index in wrong.nonzero()[0])
        raise problem(
            "format",
            file=file,
            expected="the classes of the network",
            found=f"{int(wrong.sum())} of {wrong.numel()} voxels differ, the first at {place}",
        )
    return int(differs.sum())


def _load_torchscript(path: Path) -> Network:
    return torch.jit.load(path, map_location="cpu")


def _load_onnx(path: Path) -> Network:
    session = import_module("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )

    def network(image: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        return torch.from_numpy(logits)

    return network


LOADERS = {"torchscript": _load_torchscript, "onnx": _load_onnx}
