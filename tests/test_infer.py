"""The verb `infer`: masks, records and errors as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import (
    AFFINE,
    LABELS,
    MODALITIES,
    datalist_entry,
    make_case,
    save_nifti,
    write_datalist,
)
from image_files import save_dicom, save_itk, save_nifti_twin
from models import HEADER, UNET, save_model

from pipeline.data.phantom import make_phantom
from pipeline.infer import main
from pipeline.inference import segmentation
from pipeline.model.trained import subject_digest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "run")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """The data list of three cases, of which the second is fold 1."""
    folder = tmp_path / "data"
    folder.mkdir()
    cases = [make_case(folder, f"case_{index:03d}", fold=index % 2) for index in range(3)]
    entries = [datalist_entry(case, folder) for case in cases]
    return write_datalist(folder / "list.json", {"training": entries})


def infer(*arguments: object, model: Path, out: Path) -> int:
    return main(["-m", str(model), "-o", str(out), *map(str, arguments)])


def record_of(out: Path, case: str) -> dict[str, Any]:
    return json.loads((out / f"{case}.json").read_text())


def masks_in(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*_seg.nii.gz"))


def test_masks_of_a_list_lie_on_their_cases_and_have_the_datasets_values(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert infer(cohort, model=model, out=out) == 0
    assert masks_in(out) == [f"case_{index:03d}_seg.nii.gz" for index in range(3)]
    image = nib.load(cohort.parent / "case_001" / "case_001_t1.nii.gz")
    mask = nib.load(out / "case_001_seg.nii.gz")
    assert mask.shape == image.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) <= set(LABELS.values())
    assert len(np.unique(values)) > 1, "everything is one class: nothing would be tested"
    record = record_of(out, "case_001")
    voxel_ml = 1.2 * 0.9 * 2.5 / 1000
    for region, members in {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}.items():
        expected = np.isin(values, members).sum() * voxel_ml
        assert record["volumes_ml"][region] == pytest.approx(expected, abs=1e-6)
    assert record["grid"] == {
        "shape": [12, 14, 10],
        "spacing_mm": [1.2, 0.9, 2.5],
        "orientation": "LPS",
    }
    assert record["models"][0]["name"] == "run/best.pt"
    assert record["settings"]["overlap"] == 0.5
    assert record["versions"].keys() >= {"torch", "monai", "brain-tumour-segmentation"}
    assert record["seconds"].keys() == {"reading", "preprocessing", "prediction", "the rest"}
    assert set(record["inputs"]) == set(MODALITIES)
    assert '4 230 159 0 1 1 1 "enhancing_tumour"' in (out / "labels_itksnap.txt").read_text()
    assert "4 enhancing_tumour 230 159 0 255" in (out / "labels_slicer.ctbl").read_text()


def test_nothing_personal_or_local_is_in_a_record(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert infer(cohort, model=model, out=out) == 0
    text = (out / "case_000.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_a_rerun_does_only_what_is_missing_or_changed(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    infer(cohort, model=model, out=out)
    before = {name: (out / name).stat().st_mtime_ns for name in masks_in(out)}
    capsys.readouterr()
    assert infer(cohort, model=model, out=out) == 0
    assert "0 cases segmented, 3 were finished before" in capsys.readouterr().out
    (out / "case_000_seg.nii.gz").write_bytes(b"damaged")
    (out / "case_001.json").write_text("{")
    flair = cohort.parent / "case_002" / "case_002_flair.nii.gz"
    shutil.copy(cohort.parent / "case_001" / "case_001_flair.nii.gz", flair)
    assert infer(cohort, model=model, out=out) == 0
    assert "3 cases segmented, 0 were finished before" in capsys.readouterr().out
    after = {name: (out / name).stat().st_mtime_ns for name in masks_in(out)}
    assert all(after[name] > before[name] for name in before)
    nib.load(out / "case_000_seg.nii.gz").get_fdata()


def test_masks_made_otherwise_are_not_replaced_unasked(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    infer(cohort, model=model, out=out)
    before = (out / "case_000_seg.nii.gz").read_bytes()
    other = save_model(tmp_path / "other", seed=5)
    assert infer(cohort, model=other, out=out) == 2
    assert "made with other models. Choose another folder" in capsys.readouterr().err
    assert infer(cohort, "--fill-holes", model=model, out=out) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert (out / "case_000_seg.nii.gz").read_bytes() == before
    assert infer(cohort, "--overwrite", model=other, out=out) == 0
    assert (out / "case_000_seg.nii.gz").read_bytes() != before


def test_no_map_of_another_model_stays_beside_a_new_mask(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--cases", "case_000")
    infer(cohort, *options, "--probabilities", model=model, out=out)
    (out / "case_000_notes.txt").write_text("mine")
    other = save_model(tmp_path / "other", seed=5)
    assert infer(cohort, *options, "--overwrite", model=other, out=out) == 0
    names = sorted(path.name for path in out.glob("case_000*"))
    assert names == ["case_000.json", "case_000_notes.txt", "case_000_seg.nii.gz"]


def test_volumes_are_those_of_sheared_voxels(model: Path, tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5  # makes the second axis longer, and no voxel larger
    case = make_case(tmp_path, "sheared", affine=sheared)
    assert infer(case.images[0].parent, model=model, out=tmp_path / "out") == 0
    mask = np.asarray(nib.load(tmp_path / "out" / "sheared_seg.nii.gz").dataobj)
    expected = np.count_nonzero(mask) * 1.2 * 0.9 * 2.5 / 1000
    found = record_of(tmp_path / "out", "sheared")["volumes_ml"]["WT"]
    assert found == pytest.approx(expected, abs=1e-5)  # the header's float32


def test_masks_of_somebody_else_are_not_replaced_unasked(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "case_000_seg.nii.gz").write_bytes(b"years of work")
    assert infer(cohort, model=model, out=out) == 2
    assert "there are masks already, such as case_000_seg.nii.gz" in capsys.readouterr().err
    assert (out / "case_000_seg.nii.gz").read_bytes() == b"years of work"


def test_a_bad_case_does_not_keep_the_others_from_their_masks(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (cohort.parent / "case_001" / "case_001_t2.nii.gz").write_bytes(b"\x1f\x8b torn")
    (cohort.parent / "case_002" / "case_002_t1.nii.gz").unlink()
    assert infer(cohort, model=model, out=out) == 3
    assert masks_in(out) == ["case_000_seg.nii.gz"]
    message = capsys.readouterr().err
    assert "2 of 3 cases have no mask" in message
    assert "case_001, case_001_t2.nii.gz: checksum" in message
    assert "case_002, case_002_t1.nii.gz: missing-file" in message


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An input/output error stands for a forbidden file: nothing is forbidden to root."""
    image = cohort.parent / "case_000" / "case_000_t2.nii.gz"
    image.unlink()
    image.symlink_to("/proc/self/mem")
    out = tmp_path / "out"
    assert infer(cohort, "--allow-outside-root", model=model, out=out) == 3
    assert masks_in(out) == ["case_001_seg.nii.gz", "case_002_seg.nii.gz"]
    message = capsys.readouterr().err
    assert "1 of 3 cases have no mask" in message
    assert "case_000, case_000_t2.nii.gz: unreadable-file: expected a file that can" in message


def test_a_brain_of_two_voxels_does_not_stop_the_others(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(
        tmp_path / "run", network={**UNET, "norm": "instance"}, preprocessing={"brain_box": True}
    )
    volume = np.zeros((12, 14, 10), dtype=np.int16)
    volume[5, 6, 7:9] = 100, 50  # not one intensity alone, which would be told as such
    for name in MODALITIES:
        save_nifti(cohort.parent / "case_000" / f"case_000_{name}.nii.gz", volume, AFFINE)
    out = tmp_path / "out"
    assert infer(cohort, model=model, out=out) == 3
    assert masks_in(out) == ["case_001_seg.nii.gz", "case_002_seg.nii.gz"]
    message = capsys.readouterr().err
    assert "case_000: too-small: expected more than 2 voxels along an axis" in message


def test_an_incomplete_case_in_a_tree_does_not_stop_the_others(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cohort.parent / "case_001" / "case_001_t2.nii.gz").unlink()
    out, nowhere = tmp_path / "out", tmp_path / "nowhere"
    assert infer(cohort.parent, nowhere, model=model, out=out) == 3
    assert masks_in(out) == ["case_000_seg.nii.gz", "case_002_seg.nii.gz"]
    message = capsys.readouterr().err
    assert "2 of 4 cases have no mask" in message
    assert "case_001: incomplete-case: expected a file for each of flair" in message.replace(
        f", {cohort.parent / 'case_001'}", ""
    )
    assert "missing-folder" in message
    assert "not segmented: case_001" in (out / "log.txt").read_text()


def test_folders_without_any_case_leave_no_output(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert infer(tmp_path / "empty", model=model, out=tmp_path / "out") == 3
    assert "no-case" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_constant_modality_is_warned_of_and_noted(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "run", preprocessing={"normalization": "zscore"})
    path = cohort.parent / "case_001" / "case_001_t1ce.nii.gz"
    save_nifti(path, np.zeros((12, 14, 10), dtype=np.int16), AFFINE)
    out = tmp_path / "out"
    assert infer(cohort, model=model, out=out) == 0
    (warning,) = record_of(out, "case_001")["warnings"]
    assert warning.startswith(
        "case_001, case_001_t1ce.nii.gz: constant-image: expected more than one intensity in t1ce; "
        "found 0 in every voxel."
    )
    assert capsys.readouterr().out.count(warning) == 1
    assert f"WARNING {warning}" in (out / "log.txt").read_text()
    assert record_of(out, "case_000")["warnings"] == []


def test_the_list_decides_the_values_and_must_have_the_modalities(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(cohort.read_text())
    document["labels"]["enhancing_tumour"] = 3
    cohort.write_text(json.dumps(document))
    assert infer(cohort, model=model, out=tmp_path / "out") == 0
    values = np.asarray(nib.load(tmp_path / "out" / "case_000_seg.nii.gz").dataobj)
    assert values.max() == 3
    document["modality"] = ["t1", "flair", "t1ce", "t2"]
    cohort.write_text(json.dumps(document))
    assert infer(cohort, model=model, out=tmp_path / "other") == 3
    message = capsys.readouterr().err
    assert "the checkpoint's modalities ['flair', 't1', 't1ce', 't2']" in message
    assert "found ['t1', 'flair', 't1ce', 't2']" in message
    assert not (tmp_path / "other").exists()


def test_case_folders_and_single_files_give_the_same_mask(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    folder = cohort.parent / "case_001"
    assert infer(cohort, "--cases", "case_001", model=model, out=tmp_path / "list") == 0
    assert infer(folder, model=model, out=tmp_path / "folder") == 0
    files: list[object] = [
        part for name in MODALITIES for part in (f"--{name}", folder / f"case_001_{name}.nii.gz")
    ]
    assert infer(*reversed_pairs(files), model=model, out=tmp_path / "files") == 0
    masks = [next((tmp_path / name).glob("*_seg.nii.gz")) for name in ("list", "folder", "files")]
    assert masks[0].read_bytes() == masks[1].read_bytes() == masks[2].read_bytes()
    assert masks_in(tmp_path / "list") == ["case_001_seg.nii.gz"]


def reversed_pairs(words: list[object]) -> list[object]:
    """Turn the order of (option, value) pairs round: modalities go by name, not by position."""
    pairs = list(zip(words[::2], words[1::2], strict=True))
    return [word for pair in reversed(pairs) for word in pair]


def test_a_fold_of_the_list(cohort: Path, model: Path, tmp_path: Path) -> None:
    assert infer(cohort, "--fold", 1, model=model, out=tmp_path / "out") == 0
    assert masks_in(tmp_path / "out") == ["case_001_seg.nii.gz"]


def test_a_missing_modality_is_named(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cohort.parent / "case_001"
    (folder / "case_001_t1ce.nii.gz").unlink()
    assert infer(folder, model=model, out=tmp_path / "out") == 3
    assert "t1ce" in capsys.readouterr().err


def test_one_file_with_all_modalities_or_too_few(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cohort.parent / "case_001"
    volumes = [
        np.asarray(nib.load(folder / f"case_001_{name}.nii.gz").dataobj) for name in MODALITIES
    ]
    entries = []
    for count in (4, 3):
        save_nifti(cohort.parent / f"{count}.nii.gz", np.stack(volumes[:count], axis=-1), AFFINE)
        entries.append({"case": f"with_{count}", "image": f"{count}.nii.gz"})
    listed = write_datalist(cohort.parent / "files.json", {"testing": entries})
    assert infer(listed, model=model, out=tmp_path / "out") == 3
    message = capsys.readouterr().err
    assert "with_3: modalities: expected 4 volumes (flair, t1, t1ce, t2); found 3" in message
    assert masks_in(tmp_path / "out") == ["with_4_seg.nii.gz"]
    infer(cohort, "--cases", "case_001", model=model, out=tmp_path / "files")
    found, expected = (
        np.asarray(nib.load(path).dataobj)
        for path in (
            tmp_path / "out" / "with_4_seg.nii.gz",
            tmp_path / "files" / "case_001_seg.nii.gz",
        )
    )
    np.testing.assert_array_equal(found, expected)


def test_different_grids_are_refused_and_resampled_on_request(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort.parent / "case_001" / "case_001_t2.nii.gz"
    image = nib.load(path)
    shifted = image.affine.copy()
    shifted[0, 3] += 1.2  # the same content a voxel further to the left
    save_nifti(path, np.asarray(image.dataobj), shifted)
    assert infer(cohort, "--cases", "case_001", model=model, out=tmp_path / "out") == 3
    message = capsys.readouterr().err
    assert "different-grid" in message
    assert "--resample-to" in message
    options = ("--cases", "case_001", "--resample-to", "flair")
    assert infer(cohort, *options, model=model, out=tmp_path / "out2") == 0
    mask = nib.load(tmp_path / "out2" / "case_001_seg.nii.gz")
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-6)
    assert infer(cohort, "--resample-to", "pd", model=model, out=tmp_path / "out3") == 2
    assert "--resample-to pd: choose one of flair, t1" in capsys.readouterr().err


def test_probabilities_and_uncertainty_are_written_on_the_cases_grid(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--cases", "case_000", "--probabilities", "--uncertainty", 3)
    assert infer(cohort, *options, model=model, out=out) == 0
    probabilities = nib.load(out / "case_000_probabilities.nii.gz")
    assert probabilities.shape == (12, 14, 10, 4)
    values = probabilities.get_fdata()
    # float32 sums of four
    np.testing.assert_allclose(values.sum(axis=-1), 1, atol=1e-6)
    mask = np.asarray(nib.load(out / "case_000_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(np.array([0, 1, 2, 4])[values.argmax(axis=-1)], mask)
    entropy = nib.load(out / "case_000_entropy.nii.gz")
    mutual = nib.load(out / "case_000_mutual_information.nii.gz")
    assert entropy.shape == mutual.shape == (12, 14, 10, 4)
    np.testing.assert_allclose(entropy.affine, AFFINE, atol=1e-6)
    assert 0 < entropy.get_fdata().max() <= np.log(4) + 1e-6
    assert np.all(mutual.get_fdata() <= entropy.get_fdata())
    record = record_of(out, "case_000")
    assert record["uncertainty"]["maps"] == ["classes", "WT", "TC", "ET"]
    assert record["uncertainty"]["volumes_ml"]["WT"]["standard_deviation"] > 0
    assert len(record["outputs"]) == 4
    assert infer(cohort, "--uncertainty", 1, model=model, out=tmp_path / "one") == 2


def test_cleaning_is_off_by_default_and_told(cohort: Path, model: Path, tmp_path: Path) -> None:
    infer(cohort, "--cases", "case_000", model=model, out=tmp_path / "plain")
    assert record_of(tmp_path / "plain", "case_000")["cleaning"] == []
    options = ("--cases", "case_000", "--min-et-ml", 1000, "--largest-component", "--fill-holes")
    assert infer(cohort, *options, model=model, out=tmp_path / "clean") == 0
    record = record_of(tmp_path / "clean", "case_000")
    assert record["volumes_ml"]["ET"] == 0
    assert any("ET" in line for line in record["cleaning"])
    assert record["settings"]["min_et_volume_ml"] == 1000


def test_regions_that_say_nothing_of_a_small_enhancing_tumour(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "run", header={**HEADER, "regions": {"WT": ["oedema"]}})
    assert infer(cohort, "--min-et-ml", 1, model=model, out=tmp_path / "out") == 2
    assert "--min-et-ml: a smallest ET volume needs a region ET" in capsys.readouterr().err


def test_it_says_beforehand_what_it_is_going_to_need(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(cohort, "--probabilities", "--tta", model=model, out=tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "run/best.pt: 12 x 14 x 10 voxels in one pass, 0.0 to 0.0 GB of memory of" in said
    # 1680 voxels of 1 byte and 4 maps of 4 bytes, three times
    assert "3 cases of 8 passes, as large as the first: roughly 0.0 min" in said
    assert "at most 0 MB of disk" in said


def test_who_was_trained_on_is_told(cohort: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "run", trained_on=(subject_digest("case_000"),))
    assert infer(cohort, model=model, out=tmp_path / "out") == 0
    seen = [
        record_of(tmp_path / "out", f"case_{index:03d}")["models"][0]["seen_in_training"]
        for index in range(3)
    ]
    assert seen == [True, False, False]


def test_of_a_subject_that_was_guessed_nobody_knows(cohort: Path, tmp_path: Path) -> None:
    """Files may be called otherwise than in the training; a name that is known is known."""
    model = save_model(tmp_path / "run", trained_on=(subject_digest("case_000"),))
    assert infer(cohort.parent, model=model, out=tmp_path / "tree") == 0
    folder = cohort.parent / "case_000"
    files = [
        part for name in MODALITIES for part in (f"--{name}", folder / f"case_000_{name}.nii.gz")
    ]
    assert infer(*files, "--case-id", "renamed", model=model, out=tmp_path / "files") == 0
    places = [("tree", "case_000"), ("tree", "case_001"), ("files", "renamed")]
    seen = [
        record_of(tmp_path / out, case)["models"][0]["seen_in_training"] for out, case in places
    ]
    assert seen == [True, None, None]


def test_uncertainty_without_dropout_is_refused_and_leaves_the_folder_free(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    model = save_model(tmp_path / "run", network={**UNET, "dropout": 0.0})
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.delattr(segmentation.Segmenter, "open")  # no case is looked at
        assert infer(cohort, "--uncertainty", 4, model=model, out=out) == 2
    assert "needs a network with dropout" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "run.lock"]
    assert infer(cohort, model=model, out=out) == 0


def test_a_folder_without_a_mask_is_anybodys(
    cohort: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segmentation.Segmenter, "predict", die)
        assert infer(cohort, "--fill-holes", model=model, out=tmp_path / "out") == 75
    assert infer(cohort, model=model, out=tmp_path / "out") == 0
    assert record_of(tmp_path / "out", "case_000")["settings"]["fill_holes"] is False
    assert infer(cohort, "--fill-holes", model=model, out=tmp_path / "out") == 2


def test_an_ensemble_of_two(cohort: Path, model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=3)
    options = ("-m", other, "--cases", "case_000", "--window", 8, "--tta")
    assert infer(cohort, *options, model=model, out=tmp_path / "out") == 0
    record = record_of(tmp_path / "out", "case_000")
    assert [entry["name"] for entry in record["models"]] == ["run/best.pt", "other/best.pt"]
    assert record["windows"] == [[8, 8, 8], [8, 8, 8]]
    assert record["settings"]["flips"] is True


def test_windows_are_rounded_up_to_what_the_network_takes(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--cases", "case_000")
    for name, window in (("odd", 7), ("even", 8)):
        assert infer(cohort, *options, "--window", window, model=model, out=tmp_path / name) == 0
        assert "12 x 14 x 10 voxels in windows of 8 x 8 x 8" in capsys.readouterr().out
    assert record_of(tmp_path / "odd", "case_000")["windows"] == [[8, 8, 8]]
    masks = [(tmp_path / name / "case_000_seg.nii.gz").read_bytes() for name in ("odd", "even")]
    assert masks[0] == masks[1]
    small = save_model(tmp_path / "small", network={**UNET, "norm": "instance"})
    assert infer(cohort, "--window", 2, model=small, out=tmp_path / "none") == 2
    assert "--window: in windows of 2 x 2 x 2 voxels small/best.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a data list, case folders, or the files of one case"),
        (["LIST", "--flair", "x.nii.gz"], "found both"),
        (["LIST", "LIST"], "found both or several lists"),
        (["FOLDER", "--fold", "0"], "--fold and --cases choose from a data list"),
        (["LIST", "--cases", "nobody"], "--cases: expected ids of list.json; found also nobody"),
        (["LIST", "--window", "8,8"], "--window: expected a number of voxels, three with commas"),
        (["LIST", "--window", "0"], "--window: expected a number of voxels"),
        (["LIST", "--overlap", "1.5"], "overlap: Input should be less than 1"),
        (["LIST", "--device", "cuda:9"], "--device cuda:9: there is no such device"),
    ],
)
def test_wrong_command_lines(
    cohort: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    places = {"LIST": str(cohort), "FOLDER": str(cohort.parent / "case_000")}
    out = tmp_path / "out"
    assert infer(*(places.get(word, word) for word in words), model=model, out=out) == 2
    assert message in capsys.readouterr().err
    assert not masks_in(out)


def test_the_slower_ways_on_request(cohort: Path, model: Path, tmp_path: Path) -> None:
    options = ("--full-precision", "--outside-brain")
    for name, said, expected in (("quick", (), True), ("slow", options, False)):
        assert infer(cohort, "--cases", "case_000", *said, model=model, out=tmp_path / name) == 0
        settings = record_of(tmp_path / name, "case_000")["settings"]
        assert (settings["amp"], settings["brain_only"]) == (expected, expected)


def test_whole_volume_on_request(cohort: Path, model: Path, tmp_path: Path) -> None:
    infer(cohort, "--window", "whole", "--cases", "case_000", model=model, out=tmp_path / "out")
    record = record_of(tmp_path / "out", "case_000")
    assert record["settings"]["window"] is None
    assert record["windows"] == [None]


def test_a_signal_ends_it_after_the_case_and_the_rerun_goes_on(
    cohort: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    write_record = segmentation.write_record

    def write_and_stop(*arguments: Any) -> None:
        write_record(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(segmentation, "write_record", write_and_stop)
    assert infer(cohort, model=model, out=out) == 75
    assert "stopped by SIGTERM after 1 of 3 cases" in capsys.readouterr().err
    assert masks_in(out) == ["case_000_seg.nii.gz"]
    monkeypatch.undo()
    assert infer(cohort, model=model, out=out) == 0
    assert "2 cases segmented, 1 were finished before" in capsys.readouterr().out


def test_a_signal_while_the_network_works_ends_it_after_that_case(
    cohort: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    predict = segmentation.Segmenter.predict

    def predict_and_stop(self: Any, opened: Any) -> Any:
        if opened.case.id == "case_001":
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, opened)

    monkeypatch.setattr(segmentation.Segmenter, "predict", predict_and_stop)
    assert infer(cohort, model=model, out=out) == 75
    assert "stopped by SIGTERM after 2 of 3 cases" in capsys.readouterr().err
    assert masks_in(out) == ["case_000_seg.nii.gz", "case_001_seg.nii.gz"]
    assert record_of(out, "case_001")["case"] == "case_001"


def test_cases_are_read_while_the_network_works_one_at_most(
    cohort: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network waits until the next case has been read, which it could not if that waited."""
    read: list[str] = []
    told: dict[str, list[str]] = {}
    arrived = threading.Condition()
    opening, predict = segmentation.Segmenter.open, segmentation.Segmenter.predict

    def open_case(self: Any, case: Any, **inputs: Any) -> Any:
        opened = opening(self, case, **inputs)
        with arrived:
            read.append(case.id)
            arrived.notify()
        return opened

    def predict_late(self: Any, opened: Any) -> Any:
        wanted = min(int(opened.case.id[-1]) + 2, 3)
        with arrived:
            assert arrived.wait_for(lambda: len(read) >= wanted, timeout=60)
        time.sleep(0.2)  # time for one case too many
        told[opened.case.id] = list(read)
        return predict(self, opened)

    monkeypatch.setattr(segmentation.Segmenter, "open", open_case)
    monkeypatch.setattr(segmentation.Segmenter, "predict", predict_late)
    assert infer(cohort, model=model, out=tmp_path / "out") == 0
    names = ["case_000", "case_001", "case_002"]
    assert told == {"case_000": names[:2], "case_001": names, "case_002": names}


def test_files_are_written_while_the_network_works(
    cohort: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    write, predict = segmentation.Segmenter.write, segmentation.Segmenter.predict

    def write_late(self: Any, opened: Any, prediction: Any) -> Any:
        if opened.case.id == "case_000":
            assert began.wait(timeout=60)
        return write(self, opened, prediction)

    def predict_then(self: Any, opened: Any) -> Any:
        if opened.case.id == "case_001":
            began.set()
        return predict(self, opened)

    monkeypatch.setattr(segmentation.Segmenter, "write", write_late)
    monkeypatch.setattr(segmentation.Segmenter, "predict", predict_then)
    assert infer(cohort, model=model, out=tmp_path / "out") == 0
    assert len(masks_in(tmp_path / "out")) == 3


def test_large_maps_are_not_kept_beside_the_next_case(
    cohort: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict = segmentation.Segmenter.predict
    finished: list[int] = []

    def predict_and_look(self: Any, opened: Any) -> Any:
        finished.append(len(list(out.glob("case_*.json"))))
        return predict(self, opened)

    monkeypatch.setattr(segmentation.Segmenter, "predict", predict_and_look)
    assert infer(cohort, "--probabilities", model=model, out=out) == 0
    assert finished == [0, 1, 2]


def test_what_was_segmented_counts_when_the_next_case_fails(
    cohort: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    predict = segmentation.Segmenter.predict

    def fail(self: Any, opened: Any) -> Any:
        if opened.case.id == "case_001":
            raise MemoryError
        return predict(self, opened)

    monkeypatch.setattr(segmentation.Segmenter, "predict", fail)
    assert infer(cohort, model=model, out=out) == 4
    assert "case_001: out of memory" in capsys.readouterr().err
    assert masks_in(out) == ["case_000_seg.nii.gz"]
    assert record_of(out, "case_000")["case"] == "case_000"


@pytest.mark.parametrize("num_failures", [1, 2])
def test_a_case_for_which_memory_is_short_beside_another_is_read_again(
    cohort: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    num_failures: int,
) -> None:
    opening = segmentation.Segmenter.open
    failed: list[bool] = []

    def open_case(self: Any, case: Any, **inputs: Any) -> Any:
        if case.id == "case_001" and len(failed) < num_failures:
            failed.append(True)
            raise MemoryError
        return opening(self, case, **inputs)

    monkeypatch.setattr(segmentation.Segmenter, "open", open_case)
    code = infer(cohort, model=model, out=tmp_path / "out")
    assert code == (0 if num_failures == 1 else 4)
    assert len(masks_in(tmp_path / "out")) == (3 if num_failures == 1 else 1)
    assert ("case_001: out of memory" in capsys.readouterr().err) is (num_failures == 2)


def test_the_log_tells_the_cases_in_their_order(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    infer(cohort, "--cases", "case_000", model=model, out=out)
    (cohort.parent / "case_001" / "case_001_t2.nii.gz").unlink()
    document = json.loads(cohort.read_text())
    document["training"] = [document["training"][index] for index in (2, 1, 0)]
    cohort.write_text(json.dumps(document))
    assert infer(cohort, model=model, out=out) == 3
    lines = (out / "log.txt").read_text().splitlines()[1:]
    told = [line for line in lines if "case_002: WT" in line or "not segmented" in line]
    assert ["case_002" in line for line in told] == [True, False]
    assert "1 cases segmented, 1 were finished before" in capsys.readouterr().out


def test_killed_between_mask_and_record_it_does_the_case_again(
    cohort: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(segmentation, "write_record", die)
    assert infer(cohort, model=model, out=out) == 75
    assert masks_in(out) == ["case_000_seg.nii.gz"]
    monkeypatch.undo()
    assert infer(cohort, model=model, out=out) == 0
    assert len(masks_in(out)) == 3


def test_itk_reads_the_mask_on_the_grid_of_the_image(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    """In a process of its own: importing itk while warnings are errors crashes the interpreter."""
    out = tmp_path / "out"
    infer(cohort, "--cases", "case_000", model=model, out=out)
    code = """
import itk, numpy as np, sys
image, mask = (itk.imread(path) for path in sys.argv[1:])
assert itk.size(image) == itk.size(mask)
for name in ("GetOrigin", "GetSpacing"):
    np.testing.assert_allclose(getattr(mask, name)(), getattr(image, name)(), atol=1e-5)
to_array = itk.array_from_matrix
np.testing.assert_allclose(to_array(mask.GetDirection()), to_array(image.GetDirection()), atol=1e-6)
print(int(itk.array_view_from_image(mask).sum()))
"""
    image = cohort.parent / "case_000" / "case_000_flair.nii.gz"
    paths = [str(image), str(out / "case_000_seg.nii.gz")]
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(np.asarray(nib.load(paths[1]).dataobj).sum())


@pytest.mark.parametrize("kind", ["nrrd", "mha", "dicom"])
def test_other_formats_give_the_mask_of_the_nifti(model: Path, tmp_path: Path, kind: str) -> None:
    """The same phantom as NIfTI and otherwise: the same voxels in the mask, on the same grid."""
    phantom = make_phantom(shape=(30, 34, 26), spacing_mm=6.0, seed=0, index=1)
    for folder in ("nifti", kind):
        (tmp_path / folder / "p").mkdir(parents=True)
    for name, volume in phantom.images.items():
        save_nifti_twin(tmp_path / "nifti" / "p" / f"p_{name}.nii.gz", volume)
        if kind == "dicom":
            save_dicom(tmp_path / kind / "p" / name, volume)
        else:
            save_itk(tmp_path / kind / "p" / f"p_{name}.{kind}", volume)
    for folder in ("nifti", kind):
        assert infer(tmp_path / folder / "p", model=model, out=tmp_path / f"{folder}_out") == 0
    found, expected = (
        nib.load(tmp_path / f"{folder}_out" / "p_seg.nii.gz") for folder in (kind, "nifti")
    )
    values = np.asarray(expected.dataobj)
    assert len(np.unique(values)) > 1
    np.testing.assert_array_equal(np.asarray(found.dataobj), values)
    # DICOM's decimal strings and NIfTI's float32 round the geometry.
    np.testing.assert_allclose(found.affine, expected.affine, rtol=0, atol=1e-4)


@pytest.mark.real
def test_a_real_case_at_full_size(real_cases: Path, tmp_path: Path) -> None:
    """Written, verified, and where nibabel sees the flair, whatever the network says."""
    model = save_model(tmp_path / "run", preprocessing={"brain_box": True}, seed=3)
    folder = sorted(real_cases.glob("BraTS2021_*"))[0]
    assert infer(folder, model=model, out=tmp_path / "out") == 0
    image = nib.load(folder / f"{folder.name}_flair.nii.gz")
    mask = nib.load(tmp_path / "out" / f"{folder.name}_seg.nii.gz")
    assert mask.shape == image.shape == (240, 240, 155)
    np.testing.assert_array_equal(mask.affine, image.affine)
    outside = np.asarray(mask.dataobj)[np.asarray(image.dataobj) == 0]
    assert np.mean(outside == 0) > 0.5, "what the brain box cut off must be background"
    record = record_of(tmp_path / "out", folder.name)
    values, counts = np.unique(np.asarray(mask.dataobj), return_counts=True)
    volumes = dict(zip(values.tolist(), counts / 1000, strict=True))
    assert record["volumes_ml"]["ET"] == pytest.approx(volumes.get(4, 0), abs=1e-6)
    assert record["peak_memory_mb"] > 100


def test_nonfinite_voxels_are_refused_and_taken_for_0_on_request(
    cohort: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort.parent / "case_001" / "case_001_t2.nii.gz"
    volume = np.asarray(nib.load(path).dataobj).astype(np.float32)
    zeroed = volume.copy()
    volume[5, 5, 5], zeroed[5, 5, 5] = np.nan, 0
    save_nifti(path, volume, AFFINE)
    options = ("--cases", "case_001")
    assert infer(cohort, *options, model=model, out=tmp_path / "refused") == 3
    message = capsys.readouterr().err
    assert "non-finite" in message
    assert "--mask-nonfinite" in message
    assert infer(cohort, *options, "--mask-nonfinite", model=model, out=tmp_path / "masked") == 0
    save_nifti(path, zeroed, AFFINE)
    assert infer(cohort, *options, model=model, out=tmp_path / "zeroed") == 0
    masks = [tmp_path / name / "case_001_seg.nii.gz" for name in ("masked", "zeroed")]
    assert masks[0].read_bytes() == masks[1].read_bytes()
