"""A prediction and its reference, read and held against each other, as class indices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import DTypeLike

from pipeline.data.case_checks import Expectations, check_label_values
from pipeline.data.content import CaseContent, ImageFile, grid_problems, with_case
from pipeline.data.datalist import Case
from pipeline.data.images import read_image
from pipeline.data.loading import class_indices
from pipeline.data.voxel_volume import voxel_volume_ml
from pipeline.errors import DataError, Problem
from pipeline.evaluation.pairs import Pair
from pipeline.evaluation.provenance import Provenance, read_provenance

SUM_TOLERANCE = 1e-3  # of a voxel's probabilities: float16 keeps 3 decimals
PREDICTION_REMEDY = (
    "Write the prediction in the values of the data list's header (its `labels`), "
    "whatever values a single case's own mask uses."
)


@dataclass(frozen=True, eq=False)
class PairContent:
    """What is compared, on the case's own grid.

    `prediction` and `reference` are class indices below `num_classes`, uint8 (X, Y, Z);
    `probabilities` float32 (C, X, Y, Z) or None; `spacing_mm` the voxel's size along X, Y, Z;
    `voxel_ml` its volume.
    """

    case: Case
    prediction: np.ndarray
    reference: np.ndarray
    num_classes: int
    probabilities: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    voxel_ml: float
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class _Files:
    """The files as read; None for what could not be read. `probabilities` is (C, X, Y, Z)."""

    reference: ImageFile | None
    prediction: ImageFile | None
    probabilities: ImageFile | None
    provenance: Provenance | None


def read_pair(pair: Pair, *, labels: Mapping[str, int]) -> PairContent:
    """Read the files of `pair` to their ends and check them against each other.

    `labels` are the data list's (name -> voxel value): the prediction's coding. The reference is
    in the case's own, `case.label_values`.

    Raises:
        DataError: Every problem of the case: a file that cannot be read or is damaged, another
            grid, label values that are not in the coding or belong to another, values that are no
            probabilities, or a `<case>.json` of another case or coding.
    """
    files, problems = _read_files(pair, labels)
    problems += _problems(files, pair.case, labels)
    if problems:
        raise DataError.of(*problems)
    # Whatever could not be read is among the problems.
    reference, prediction = cast("ImageFile", files.reference), cast("ImageFile", files.prediction)
    return PairContent(
        case=pair.case,
        prediction=class_indices(prediction.volume, values=tuple(labels.values())),
        reference=class_indices(reference.volume, values=pair.case.label_values),
        num_classes=len(labels),
        probabilities=files.probabilities.volume if files.probabilities else None,
        spacing_mm=_spacing_mm(reference.affine),
        voxel_ml=voxel_volume_ml(reference.affine),
        provenance=cast("Provenance", files.provenance),
    )


def _read_files(pair: Pair, labels: Mapping[str, int]) -> tuple[_Files, list[Problem]]:
    problems: list[Problem] = []
    reference = prediction = probabilities = provenance = None
    collecting = partial(_collecting, problems, pair.case)
    with collecting():
        reference = _read(pair.reference, name=pair.reference.name, dtype=np.int32)
    with collecting():
        prediction = _read(pair.mask, name=_name(pair.mask), dtype=np.int32)
    with collecting():
        if pair.probabilities is not None:
            path = pair.probabilities
            probabilities = _read(path, name=_name(path), dtype=np.float32, channels=True)
    with collecting():
        provenance = read_provenance(pair.provenance, case=pair.case.id, labels=labels)
    return _Files(reference, prediction, probabilities, provenance), problems


@contextmanager
def _collecting(problems: list[Problem], case: Case) -> Iterator[None]:
    """Add a DataError's problems to `problems`: the case's other files are read all the same."""
    try:
        yield
    except DataError as error:
        problems += with_case(error, case.id)


def _name(path: Path) -> str:
    """Name the folder too: the reference's file often has the same name."""
    return f"{path.parent.name}/{path.name}"


def _read(path: Path, *, name: str, dtype: DTypeLike, channels: bool = False) -> ImageFile:
    try:
        volume, affine = read_image(path, dtype=dtype, channels=channels)
    except DataError as error:
        raise DataError.of(*(replace(problem, file=name) for problem in error.problems)) from error
    return ImageFile(name, volume, affine)


def _problems(files: _Files, case: Case, labels: Mapping[str, int]) -> list[Problem]:
    """Return what is wrong with files that could be read."""
    reference, prediction, probabilities = files.reference, files.prediction, files.probabilities
    problems: list[Problem] = []
    one_volume = probabilities and replace(probabilities, volume=probabilities.volume[0])
    on_one_grid = tuple(file for file in (reference, prediction, one_volume) if file)
    problems += grid_problems(CaseContent(case, on_one_grid, None))
    expectations = Expectations(label_names=tuple(labels))
    problems += check_label_values(CaseContent(case, (), reference), expectations)
    in_header_values = replace(case, label_values=tuple(labels.values()))
    wrong = check_label_values(CaseContent(in_header_values, (), prediction), expectations)
    problems += [replace(problem, remedy=PREDICTION_REMEDY) for problem in wrong]
    if probabilities:
        problems += _probability_problems(probabilities, case, num_classes=len(labels))
    return problems


def _probability_problems(file: ImageFile, case: Case, *, num_classes: int) -> list[Problem]:
    """Report another number of volumes than classes, and voxels that hold no probabilities."""
    expected = found = ""
    if len(file.volume) != num_classes:
        expected, found = f"{num_classes} volumes, one a class", f"{len(file.volume)}"
    else:
        with np.errstate(invalid="ignore"):  # inf - inf: NaN fails the comparison, as it should
            is_one = np.abs(file.volume.sum(axis=0) - 1) <= SUM_TOLERANCE
        num_bad = int(np.count_nonzero(~is_one | (file.volume.min(axis=0) < 0)))
        if num_bad:
            expected = "values from 0 that sum to 1 in every voxel"
            found = f"{num_bad} of {is_one.size} voxels without"
    if not expected:
        return []
    return [
        Problem(
            case=case.id,
            kind="probabilities",
            file=file.name,
            expected=expected,
            found=found,
            remedy="Write softmax probabilities in the order of the labels, or remove the file.",
        )
    ]


def _spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(size) for size in voxel_sizes(affine))
    return (x, y, z)
