"""Phantoms and their cohorts: what every user of the data relies on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import pipeline.data.phantom as cohorts
from pipeline.data.phantom import Cohort, Needs, Phantom, make_phantom, write_cohort
from pipeline.data.phantom_case import _traits
from pipeline.errors import ResourceError, SettingsError

SHAPE, SPACING_MM = (32, 32, 24), 6.0
VOXEL_ML = SPACING_MM**3 / 1000
SMALL = {"shape": SHAPE, "spacing_mm": SPACING_MM}


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    """One whole block of cases."""
    return [make_phantom(**SMALL, seed=4, index=index) for index in range(5)]


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_seed_and_index_give_the_same_phantom_and_others_do_not(phantoms: list[Phantom]):
    again = make_phantom(**SMALL, seed=4, index=1)
    for name, image in again.images.items():
        np.testing.assert_array_equal(image, phantoms[1].images[name])
    np.testing.assert_array_equal(again.label, phantoms[1].label)
    other_seed = make_phantom(**SMALL, seed=5, index=1)
    assert not np.array_equal(other_seed.label, phantoms[1].label)
    assert not np.array_equal(phantoms[0].label, phantoms[1].label)


def test_images_are_int16_and_exactly_zero_outside_one_brain(phantoms: list[Phantom]):
    for phantom in phantoms:
        assert list(phantom.images) == ["flair", "t1", "t1ce", "t2"]
        brains = {name: image > 0 for name, image in phantom.images.items()}
        for name, image in phantom.images.items():
            assert image.dtype == np.int16
            assert image.shape == SHAPE
            assert image.min() == 0
            np.testing.assert_array_equal(brains[name], brains["t1"])
        share = brains["t1"].sum() * VOXEL_ML
        assert 900 < share < 1600, "millilitres of a brain with its CSF"
        assert not any(brains["t1"].take(side, axis).any() for axis in range(3) for side in (0, -1))


def test_gains_differ_between_modalities_and_cases(phantoms: list[Phantom]):
    means = [image[image > 0].mean() for phantom in phantoms for image in phantom.images.values()]
    assert max(means) > 2 * min(means)
    assert all(image.max() < 32767 for phantom in phantoms for image in phantom.images.values())


def test_labels_have_brats_values_inside_the_brain(phantoms: list[Phantom]):
    for phantom in phantoms:
        assert phantom.label.dtype == np.uint8
        assert set(np.unique(phantom.label)) <= {0, 1, 2, 4}
        assert {0, 1, 2} <= set(np.unique(phantom.label))
        assert (phantom.images["t1"][phantom.label > 0] > 0).all()


def test_whole_tumours_have_20_to_150_ml(phantoms: list[Phantom]):
    volumes_ml = [(phantom.label > 0).sum() * VOXEL_ML for phantom in phantoms]
    # the box leaves 132 mm for heads of up to 147 mm, so that some are scaled down
    assert min(volumes_ml) > 20 * (132 / 147) ** 3
    assert max(volumes_ml) < 150
    assert max(volumes_ml) > 1.3 * min(volumes_ml)


def test_one_case_in_five_does_not_enhance_and_its_label_says_so(phantoms: list[Phantom]):
    without = [not (phantom.label == 4).any() for phantom in phantoms]
    assert without == [not _traits(4, index).enhancing for index in range(5)]
    assert sum(without) == 1


def test_the_mix_of_cases_over_a_large_cohort():
    traits = [_traits(0, index) for index in range(1000)]
    assert sum(not trait.enhancing for trait in traits) == 200
    assert sum(trait.at_edge for trait in traits) == 200
    # 200 blocks, each with satellites at an even chance: within four standard deviations
    assert sum(trait.num_satellites > 0 for trait in traits) == pytest.approx(100, abs=29)
    assert {trait.num_satellites for trait in traits} == {0, 1, 2}
    assert len({tuple(traits[start : start + 5]) for start in range(0, 1000, 5)}) > 20


def test_a_tumour_at_the_edge_reaches_the_surface_and_others_start_deeper(phantoms: list[Phantom]):
    depths_mm = []
    for phantom in phantoms:
        brain = ndimage.binary_closing(np.pad(phantom.images["t1"] > 0, 2), iterations=2)
        depth_mm = ndimage.distance_transform_edt(brain) * SPACING_MM
        core = np.pad(np.isin(phantom.label, (1, 4)), 2)
        depths_mm.append(np.median(depth_mm[core]))
    at_edge = [_traits(4, index).at_edge for index in range(5)]
    assert np.argmin(depths_mm) == at_edge.index(True)


def test_images_show_what_the_label_says(phantoms: list[Phantom]):
    for phantom in phantoms:
        label = phantom.label
        healthy = (phantom.images["t1"] > 0) & (label == 0)

        def level(modality: str, value: int, phantom=phantom, healthy=healthy) -> float:
            image = phantom.images[modality].astype(float)
            return float(image[phantom.label == value].mean() / np.median(image[healthy]))

        assert level("flair", 2) > 1.03, "oedema is bright in flair"
        assert level("t2", 2) > 1.03, "and in t2"
        assert level("t1", 1) < 0.97, "the core is dark in t1"
        assert level("t2", 1) > 1.1, "and bright in t2"
        if (label == 4).any():
            assert level("t1ce", 4) > 1.25 * level("t1", 4), "the ring takes up contrast agent"
            assert level("t1ce", 4) > 1.1 * level("t1ce", 1), "the core inside it does not"


def test_no_threshold_finds_the_tumour(phantoms: list[Phantom]):
    """Intensities overlap as in patients: the best threshold in flair is far from a Dice of 1."""
    best = []
    for phantom in phantoms:
        image, tumour = phantom.images["flair"], phantom.label > 0
        levels = np.quantile(image[image > 0], np.linspace(0.5, 0.99, 30))
        best.append(
            max(
                2 * (tumour & (image > t)).sum() / (tumour.sum() + (image > t).sum())
                for t in levels
            )
        )
    assert np.mean(best) < 0.85


def test_tissue_contrast_in_the_images_of_a_healthy_half():
    """WM > GM > CSF in t1, and CSF brightest in t2 and darkest in flair, read off the images.

    The classes are told apart by t1 alone, so that t2 and flair are free to disagree.
    """
    phantom = make_phantom(shape=(60, 60, 39), spacing_mm=4.0, seed=1, index=0)
    far = ~ndimage.binary_dilation(phantom.label > 0, iterations=3) & (phantom.images["t1"] > 0)
    far = ndimage.binary_erosion(far, iterations=2)
    t1 = phantom.images["t1"][far]
    darkest, brightest = t1 < np.quantile(t1, 0.03), t1 > np.quantile(t1, 0.7)
    middle = (t1 > np.quantile(t1, 0.2)) & (t1 < np.quantile(t1, 0.4))
    for modality, order in (("t2", (darkest, middle, brightest)), ("flair", (middle, darkest))):
        values = phantom.images[modality][far]
        means = [values[kind].mean() for kind in order]
        assert means == sorted(means, reverse=True), modality


@pytest.mark.parametrize(
    ("shape", "spacing_mm"), [((24, 24, 24), 0.5), ((24, 40, 33), 4.0), ((60, 60, 24), 4.0)]
)
def test_a_head_too_large_for_its_box_is_scaled_down(
    shape: tuple[int, int, int], spacing_mm: float
):
    phantom = make_phantom(shape=shape, spacing_mm=spacing_mm, seed=0, index=0)
    brain = phantom.images["t2"] > 0
    assert brain.shape == shape
    assert not any(brain.take(side, axis).any() for axis in range(3) for side in (0, -1))
    # a brain fills about 0.35 of the box around it, in whichever direction that is tight
    extent = np.ptp(np.argwhere(brain), axis=0) + 1
    assert (extent >= 0.85 * (np.array(shape) - 2)).any()
    assert 0.01 < (phantom.label > 0).sum() / brain.sum() < 0.15


def test_affine_is_brats_own():
    phantom = make_phantom(shape=(32, 40, 24), spacing_mm=6.0, seed=0, index=0)
    expected = [[-6, 0, 0, 0], [0, -6, 0, 234], [0, 0, 6, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(phantom.affine, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": (23, 32, 32)}, r"shape \(23, 32, 32\): expected three sizes of at least 24"),
        ({"shape": (32, 32)}, "expected three sizes of at least 24 voxels"),
        ({"spacing_mm": 0.4}, "spacing 0.4 mm: expected 0.5 to 8.0 mm"),
        ({"spacing_mm": 9.0}, "spacing 9.0 mm: expected 0.5 to 8.0 mm"),
        ({"spacing_mm": float("nan")}, "spacing nan mm: expected 0.5 to 8.0 mm"),
        ({"seed": -1}, "seed -1, case 0: expected numbers from 0 on"),
        ({"index": -2}, "seed 0, case -2: expected numbers from 0 on"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(changed: dict, message: str):
    with pytest.raises(SettingsError, match=message):
        make_phantom(**{**SMALL, "seed": 0, "index": 0, **changed})


def test_cohort_has_brats_names_headers_and_the_phantoms_voxels(tmp_path: Path):
    folders = write_cohort(tmp_path / "new" / "cohort", num_cases=1, **SMALL, seed=4)
    assert folders == [tmp_path / "new" / "cohort" / "Phantom_00000"]
    expected = make_phantom(**SMALL, seed=4, index=0)
    volumes = {**expected.images, "seg": expected.label}
    assert {path.name for path in folders[0].iterdir()} == {
        f"Phantom_00000_{name}.nii.gz" for name in volumes
    }
    for name, volume in volumes.items():
        image = nib.load(folders[0] / f"Phantom_00000_{name}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume)
        assert image.get_data_dtype() == volume.dtype
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_array_equal(image.get_sform(), expected.affine)
        np.testing.assert_allclose(image.get_qform(), expected.affine, atol=1e-6)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.header.get_zooms() == (6.0, 6.0, 6.0)


def test_itk_reads_the_same_geometry(tmp_path: Path):
    if importlib.util.find_spec("itk") is None:
        pytest.skip("itk is not installed")
    folder = write_cohort(tmp_path, num_cases=1, **SMALL, seed=4)[0]
    # A process of its own: itk crashes while it loads where its own warnings are errors.
    code = (
        "import itk, json, sys; image = itk.imread(sys.argv[1]);"
        "matrix = itk.array_from_matrix(image.GetDirection()).tolist();"
        "print(json.dumps([list(image.GetSpacing()), list(image.GetOrigin()), matrix]))"
    )
    command = [sys.executable, "-c", code, str(folder / "Phantom_00000_t1.nii.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spacing, origin, direction = json.loads(done.stdout)
    assert spacing == [6.0, 6.0, 6.0]
    # in ITK's LPS: along the axes, and (-0, -239, 0) of BraTS becomes (0, -(32 - 1) * 6, 0)
    assert origin == [0.0, -186.0, 0.0]
    assert direction == np.eye(3).tolist()


def test_rerun_and_growth_leave_finished_cases_alone(tmp_path: Path):
    calls: list[tuple[int, int]] = []
    write_cohort(tmp_path / "a", num_cases=1, **SMALL, seed=4)
    before = fingerprint(tmp_path / "a")
    stamp = (tmp_path / "a" / "Phantom_00000").stat().st_mtime_ns
    write_cohort(
        tmp_path / "a", num_cases=2, **SMALL, seed=4, progress=lambda *done: calls.append(done)
    )
    assert calls == [(1, 2), (2, 2)]
    assert (tmp_path / "a" / "Phantom_00000").stat().st_mtime_ns == stamp
    after = fingerprint(tmp_path / "a")
    assert {name: after[name] for name in before} == before
    # made at once in another place: the same bytes, so case 0 does not depend on their number
    write_cohort(tmp_path / "b", num_cases=2, **SMALL, seed=4)
    assert fingerprint(tmp_path / "b") == after


def test_processes_make_the_same_bytes(tmp_path: Path):
    write_cohort(tmp_path / "one", num_cases=2, **SMALL, seed=4)
    write_cohort(tmp_path / "two", num_cases=2, **SMALL, seed=4, num_workers=2)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_an_incomplete_case_is_made_again_and_leftovers_disappear(tmp_path: Path):
    write_cohort(tmp_path, num_cases=1, **SMALL, seed=4)
    before = fingerprint(tmp_path)
    (tmp_path / "Phantom_00000" / "Phantom_00000_t2.nii.gz").unlink()
    left_over = tmp_path / ".Phantom_00000.0123abcd.tmp"
    left_over.mkdir()
    write_cohort(tmp_path, num_cases=1, **SMALL, seed=4)
    assert fingerprint(tmp_path) == before
    assert not left_over.exists()


def test_a_failure_leaves_no_part_of_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cohorts, "write_volume", fail)
    with pytest.raises(ResourceError, match=r"Phantom_00000: cannot be written \(No space left"):
        write_cohort(tmp_path, num_cases=1, **SMALL, seed=4)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort.json"]


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path):
    write_cohort(tmp_path, num_cases=1, **SMALL, seed=4)
    before = fingerprint(tmp_path)
    assert json.loads((tmp_path / "cohort.json").read_text())["seed"] == 4
    with pytest.raises(
        SettingsError, match=r"holds a cohort of other settings: expected .*'seed': 5"
    ):
        write_cohort(tmp_path, num_cases=1, **SMALL, seed=5)
    assert fingerprint(tmp_path) == before


def test_phantoms_of_unknown_settings_are_refused(tmp_path: Path):
    (tmp_path / "Phantom_00000").mkdir()
    with pytest.raises(SettingsError, match=r"holds phantoms but no cohort\.json"):
        write_cohort(tmp_path, num_cases=1, **SMALL, seed=4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_cases": 0}, "0 cases: expected 1 to 100000"),
        ({"num_cases": 100_001}, "100001 cases: expected 1 to 100000"),
        ({"num_workers": 0}, "0 workers: expected at least 1"),
        ({"spacing_mm": 100.0}, "spacing 100.0 mm: expected 0.5 to 8.0 mm"),
    ],
)
def test_wrong_cohorts_are_refused_before_anything_is_written(
    tmp_path: Path, changed: dict, message: str
):
    with pytest.raises(SettingsError, match=message):
        write_cohort(tmp_path / "new", **{"num_cases": 1, **SMALL, "seed": 4, **changed})
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="file/cohort: cannot be written"):
        write_cohort(tmp_path / "file" / "cohort", num_cases=1, **SMALL, seed=4)


def test_too_little_space_is_noticed_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cohorts.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"about [0-9]+ bytes needed, 1000 bytes free"):
        write_cohort(tmp_path, num_cases=1, **SMALL, seed=4)


def test_needs_cover_what_is_missing_and_the_disk_that_it_takes(tmp_path: Path):
    cohort = Cohort(tmp_path, 2, SHAPE, SPACING_MM, 4)
    needs = Needs.of(cohort, num_workers=8)
    assert (needs.num_cases, needs.num_processes) == (2, 2)
    write_cohort(tmp_path, num_cases=2, **SMALL, seed=4)
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*.nii.gz"))
    # the estimate is for an average head and an average compression
    assert 0.5 * taken < needs.disk_bytes < 2 * taken
    after = Needs.of(cohort, num_workers=8)
    assert (after.num_cases, after.disk_bytes, after.seconds) == (0, 0, 0.0)
