"""The table of lesions: places and sizes by hand, and the counts of the lesion-wise scores."""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pipeline.evaluation.lesions import lesion_scores
from pipeline.reporting.lesion_table import LesionRow, lesion_csv, lesion_rows

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
WHOLE = {"WT": (1,)}
SHAPE = (40, 20, 20)
MM = 1e-3  # what the table rounds to


def affine_of(diagonal: tuple[float, float, float]) -> np.ndarray:
    affine = np.diag([*diagonal, 1.0])
    affine[:3, 3] = (31.5, -17.25, 8.0)
    return affine


CUBIC = affine_of((1, 1, 1))
MIRRORED = affine_of((-1.2, -0.9, 2.5))


def boxes(*corners: tuple[int, ...], index: int = 1) -> np.ndarray:
    """Return class indices with boxes of one class, each by its start and size along X, Y, Z."""
    classes = np.zeros(SHAPE, dtype=np.uint8)
    for x, y, z, size_x, size_y, size_z in corners:
        classes[x : x + size_x, y : y + size_y, z : z + size_z] = index
    return classes


# Two lesions of 64 and 80 voxels, 26 voxels apart.
FIRST, SECOND = (4, 8, 8, 4, 4, 4), (34, 8, 8, 5, 4, 4)
NOTHING = boxes()


def statuses(rows: list[LesionRow]) -> list[tuple[str, int, str | None]]:
    return [(row.source, row.number, row.status) for row in rows]


# ---- Measures -----------------------------------------------------------------------------------


def test_a_lesion_is_measured_in_the_scanners_mm() -> None:
    # Voxels 2 to 5 along X, 7 to 8 along Y, 1 along Z, of 1.2 x 0.9 x 2.5 mm; X and Y run back.
    (row,) = lesion_rows("case", regions=WHOLE, affine=MIRRORED, truth=boxes((2, 7, 1, 4, 2, 1)))
    assert (row.case, row.region, row.source, row.number) == ("case", "WT", "truth", 1)
    assert row.volume_ml == pytest.approx(8 * 1.2 * 0.9 * 2.5 / 1000)
    centre = (row.centre_r_mm, row.centre_a_mm, row.centre_s_mm)
    assert centre == pytest.approx((31.5 - 1.2 * 3.5, -17.25 - 0.9 * 7.5, 8 + 2.5), abs=MM)
    extent = (row.extent_r_mm, row.extent_a_mm, row.extent_s_mm)
    assert extent == pytest.approx((4 * 1.2, 2 * 0.9, 2.5), abs=MM)
    assert row.status is None


def test_an_oblique_lesions_extent_is_that_of_its_voxels_corners() -> None:
    affine = MIRRORED.copy()
    turn = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
    affine[:3, :3] = turn @ affine[:3, :3]
    truth = boxes((2, 7, 1, 4, 2, 3), (5, 8, 3, 6, 4, 4))
    (row,) = lesion_rows("case", regions=WHOLE, affine=affine, truth=truth)
    voxels = np.argwhere(truth)
    corners = voxels[:, None] + (np.indices((2, 2, 2)).reshape(3, -1).T - 0.5)
    points = apply_affine(affine, corners.reshape(-1, 3))
    extent = (row.extent_r_mm, row.extent_a_mm, row.extent_s_mm)
    assert extent == pytest.approx(tuple(np.ptp(points, axis=0)), abs=MM)
    centre = (row.centre_r_mm, row.centre_a_mm, row.centre_s_mm)
    assert centre == pytest.approx(tuple(apply_affine(affine, voxels).mean(axis=0)), abs=MM)


def test_lesions_are_numbered_by_size_in_each_region() -> None:
    truth = boxes(FIRST, SECOND)
    truth[34:36, 8:12, 8:12] = 3
    rows = lesion_rows("case", regions=REGIONS, affine=CUBIC, truth=truth)
    assert [(row.region, row.number, row.volume_ml) for row in rows] == [
        ("WT", 1, 0.08),
        ("WT", 2, 0.064),
        ("TC", 1, 0.08),
        ("TC", 2, 0.064),
        ("ET", 1, 0.032),
    ]


# ---- Matching -----------------------------------------------------------------------------------


def test_found_missed_and_false() -> None:
    prediction = boxes((5, 8, 8, 4, 4, 4), (20, 1, 1, 2, 2, 2))
    rows = lesion_rows(
        "case", regions=WHOLE, affine=CUBIC, truth=boxes(FIRST, SECOND), prediction=prediction
    )
    assert statuses(rows) == [
        ("truth", 1, "missed"),
        ("truth", 2, "found"),
        ("prediction", 1, "found"),
        ("prediction", 2, "false"),
    ]


@pytest.mark.parametrize(("size_x", "status"), [(10, "not counted"), (11, "missed")])
def test_a_lesion_of_50_mm3_is_not_counted(size_x: int, status: str) -> None:
    truth = boxes((4, 8, 8, size_x, 5, 1))
    affine = affine_of((1.0000001, 1, 1))  # as headers store 1 mm at times
    rows = lesion_rows("case", regions=WHOLE, affine=affine, truth=truth, prediction=NOTHING)
    assert statuses(rows) == [("truth", 1, status)]


def test_an_empty_prediction_misses_everything_and_no_prediction_nothing() -> None:
    truth = boxes(FIRST)
    empty = lesion_rows("case", regions=WHOLE, affine=CUBIC, truth=truth, prediction=NOTHING)
    assert statuses(empty) == [("truth", 1, "missed")]
    absent = lesion_rows("case", regions=WHOLE, affine=CUBIC, truth=truth)
    assert statuses(absent) == [("truth", 1, None)]
    alone = lesion_rows("case", regions=WHOLE, affine=CUBIC, prediction=truth)
    assert statuses(alone) == [("prediction", 1, None)]
    assert lesion_rows("case", regions=WHOLE, affine=CUBIC, truth=NOTHING) == []
    assert lesion_rows("case", regions=WHOLE, affine=CUBIC) == []


@pytest.mark.parametrize("seed", range(6))
def test_the_rows_add_up_to_the_lesion_wise_scores(seed: int) -> None:
    random = np.random.default_rng(seed)
    spacing_mm = (1.2, 0.9, 2.5)
    smooth = [ndimage.gaussian_filter(random.random((60, 50, 40)), 1.5) for _ in range(2)]
    truth, prediction = ((volume > np.quantile(volume, 0.98)).astype(np.uint8) for volume in smooth)
    rows = lesion_rows("case", regions=WHOLE, affine=MIRRORED, truth=truth, prediction=prediction)
    assert counts_of(rows) == scored(truth > 0, prediction > 0, spacing_mm)
    # Nothing is left out of the table, however small.
    for source, mask in (("truth", truth), ("prediction", prediction)):
        volume_ml = sum(row.volume_ml for row in rows if row.source == source)
        # Each row is rounded to 1e-6 mL.
        expected = np.count_nonzero(mask) * np.prod(spacing_mm) / 1000
        assert volume_ml == pytest.approx(expected, abs=1e-6 * len(rows))


def counts_of(rows: list[LesionRow]) -> tuple[int, int, int]:
    found = [(row.source, row.status) for row in rows]
    kinds = (("truth", "found"), ("truth", "missed"), ("prediction", "false"))
    return tuple(map(found.count, kinds))


def scored(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: tuple[float, ...]
) -> tuple[int, int, int]:
    scores = lesion_scores(prediction, truth, spacing_mm=spacing_mm)
    return scores.num_found, scores.num_missed, scores.num_false


def test_shapes_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        lesion_rows("case", regions=WHOLE, affine=CUBIC, truth=NOTHING, prediction=NOTHING[1:])


# ---- CSV ----------------------------------------------------------------------------------------


def read(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_csv_reads_back() -> None:
    rows = lesion_rows(
        'a "case", of\nsorts', regions=WHOLE, affine=MIRRORED, truth=boxes(FIRST, SECOND)
    )
    found = read(lesion_csv(rows))
    assert [row["case"] for row in found] == ['a "case", of\nsorts'] * 2
    assert [float(row["volume_ml"]) for row in found] == [row.volume_ml for row in rows]
    # A negative number stays one.
    assert [float(row["centre_a_mm"]) for row in found] == [row.centre_a_mm for row in rows]
    assert [row["status"] for row in found] == ["", ""]


def test_no_lesions_leave_the_columns() -> None:
    names = [field.name for field in fields(LesionRow)]
    assert lesion_csv([]) == (",".join(names) + "\n").encode()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", " =1+1", "\t=1+1"])
def test_no_text_is_a_formula(text: str) -> None:
    rows = lesion_rows(text, regions={text: (1,)}, affine=CUBIC, truth=boxes(FIRST))
    (row,) = read(lesion_csv(rows))
    assert (row["case"], row["region"]) == (f"'{text}", f"'{text}")
    assert rows[0].case == text


# ---- Real masks ---------------------------------------------------------------------------------


@pytest.mark.real
def test_real_tumours_against_themselves_moved(real_cases: Path) -> None:
    file = sorted(real_cases.glob("*/*_seg.nii.gz"))[0]
    image = nib.load(file)
    truth = np.asarray(image.dataobj).astype(np.uint8)
    prediction = np.roll(truth, 5, axis=0)
    for region, members in {"WT": (1, 2, 3, 4), "TC": (1, 3, 4), "ET": (3, 4)}.items():
        rows = lesion_rows(
            "case",
            regions={region: members},
            affine=image.affine,
            truth=truth,
            prediction=prediction,
        )
        masks = (np.isin(volume, members) for volume in (truth, prediction))
        assert counts_of(rows) == scored(*masks, tuple(voxel_sizes(image.affine)))
