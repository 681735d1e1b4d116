"""Files from strangers: nothing in them is executed, and nothing outside is read or overwritten.

Whatever could run in this file would leave `SENTINEL` behind.
"""

from __future__ import annotations

import getpass
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import pytest
import torch
from conftest import datalist_entry, make_case, make_cohort, write_datalist
from image_files import save_dicom
from models import save_model
from prediction_files import write_prediction

from pipeline import check, evaluate, export, infer, train
from pipeline.bundle import export as exporting
from pipeline.bundle.contents import bundle_files
from pipeline.bundle.gate import Verification
from pipeline.model import checkpoint
from pipeline.model.trained import load_model

ROOT = Path(__file__).parents[1]
INFERER = {"window": None, "overlap": 0.5, "flips": False, "divisor": 2, "content_only": True}
Captured = pytest.CaptureFixture[str]


class Trap:
    """Unpickled without care, it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "SENTINEL"


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return make_cohort(tmp_path / "data", num_cases=2)


def as_pickle(path: Path, trap: Trap) -> None:
    path.write_bytes(pickle.dumps({"weights": trap}))


def as_torch_zip(path: Path, trap: Trap) -> None:
    torch.save({"weights": trap}, path)


def as_bare_zip(path: Path, trap: Trap) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(trap))
        archive.writestr("archive/version", "3")


TRAPS = [as_pickle, as_torch_zip, as_bare_zip]


def verbs_on(file: Path, cohort: Path, tmp_path: Path) -> list[tuple[int, list[Any]]]:
    """Run every verb that takes a model on `file`; return exit codes and words."""
    infer_words = ["-m", file, cohort, "-o", tmp_path / "masks"]
    train_words = [cohort, "--fold", 0, "--init-weights", file, "--output-dir", tmp_path / "new"]
    sets = ["--set", "preprocessing.border_crop=null"]
    return [
        (infer.main(list(map(str, infer_words))), infer_words),
        (export.main([str(file), "-o", str(tmp_path / "bundle")]), ["export"]),
        (train.main(list(map(str, train_words)) + sets), train_words),
    ]


@pytest.mark.parametrize("write", TRAPS)
def test_a_malicious_checkpoint(
    write: Callable[[Path, Trap], None],
    cohort: Path,
    tmp_path: Path,
    sentinel: Path,
    capsys: Captured,
) -> None:
    file = tmp_path / "best.pt"
    write(file, Trap(sentinel))
    codes = [code for code, _ in verbs_on(file, cohort, tmp_path)]
    message = capsys.readouterr().err
    assert codes == [3, 3, 3], message
    assert message.count("a damaged or foreign file") == 3
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Trap(sentinel)))  # noqa: S301 - the trap itself does work
    assert sentinel.exists()


@pytest.mark.parametrize("name", ["model2.h5", "model2.keras", "model2.weights.h5"])
@pytest.mark.parametrize("write", [as_pickle, as_torch_zip])
def test_a_pickle_that_is_called_like_a_keras_file(
    name: str,
    write: Callable[[Path, Trap], None],
    cohort: Path,
    tmp_path: Path,
    sentinel: Path,
    capsys: Captured,
) -> None:
    file = tmp_path / name
    write(file, Trap(sentinel))
    words = [cohort, "--fold", 0, "--init-weights", file, "--output-dir", tmp_path / "new"]
    code = train.main([*map(str, words), "--set", "preprocessing.border_crop=null"])
    assert code == 2
    assert "expected a Keras HDF5 file" in capsys.readouterr().err
    assert not sentinel.exists()


# ---- Archives -----------------------------------------------------------------------------------


def test_a_zip_bomb_for_a_checkpoint_is_not_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("it was inflated"))
    file = tmp_path / "best.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert file.stat().st_size < 100_000
    assert export.main([str(file), "-o", str(tmp_path / "bundle")]) == 3
    assert "a damaged or foreign file (BadZipFile)" in capsys.readouterr().err


def test_entries_that_overlap_are_not_read(tmp_path: Path) -> None:
    """A small file with one content under a thousand names, each a megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", bytes(1_000_000))
        entry = archive.infolist()[0]
        archive.filelist += [entry] * 1000
    file = tmp_path / "best.pt"
    file.write_bytes(buffer.getvalue())
    with file.open("rb") as stream, pytest.raises(zipfile.BadZipFile, match="1001 entries of 1001"):
        checkpoint._verify_checksums(stream)


def test_a_compressed_entry_is_refused_however_small(tmp_path: Path) -> None:
    """Its size may be a lie: torch stores what it writes."""
    file = tmp_path / "best.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", bytes(1000))
        archive.writestr("b", bytes(100), compress_type=zipfile.ZIP_DEFLATED)
    with file.open("rb") as stream, pytest.raises(zipfile.BadZipFile, match="a compressed entry"):
        checkpoint._verify_checksums(stream)


# ---- Bundles ------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, sentinel: Path) -> Path:
    """An honest model in a bundle whose code and configurations would make the sentinel."""
    model = load_model(save_model(tmp_path / "run"))
    folder = tmp_path / "bundle"
    for name, content in bundle_files(model, inferer=INFERER).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    code = f"import os; os.mkdir({str(sentinel)!r})"
    for package in ("transforms", "networks"):
        (folder / package / "__init__.py").write_text(code)
    config = {
        "initialize": [f"$__import__('os').mkdir({str(sentinel)!r})"],
        "network": {"_target_": "os.system", "command": f"mkdir {sentinel}"},
        "run": ["$import os"],
    }
    for name in ("inference", "evaluate", "train"):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(config))
    return folder


def test_a_bundle_s_code_and_configurations_are_left_alone(
    bundle: Path, cohort: Path, tmp_path: Path, sentinel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-m", bundle, cohort, "--cases", "case_000", "-o", tmp_path / "masks"]
    assert infer.main(list(map(str, words))) == 0
    proven = Verification("phantom", 8, ("background",), 0.0, {})
    monkeypatch.setattr(exporting, "verify_bundle", lambda *_, **__: proven)
    assert export.main([str(bundle), "-o", str(tmp_path / "again")]) == 0
    assert not sentinel.exists()
    assert (tmp_path / "again" / "transforms" / "__init__.py").read_bytes() == (
        ROOT / "transforms" / "__init__.py"
    ).read_bytes()


def test_standing_in_a_bundle_while_naming_it(bundle: Path, sentinel: Path) -> None:
    """`python -m` looks for modules in the working folder first: there are `transforms`."""
    code = "import pipeline, networks, transforms; print(networks.__file__, transforms.__file__)"
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(ROOT / name / "__init__.py") for name in ("networks", "transforms")
    ]
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["scripts/__init__.py", "configs/logging.conf"])
def test_a_bundle_with_what_monai_would_run_unasked(
    bundle: Path, name: str, capsys: Captured
) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("args=(__import__('os').system('true'),)")
    assert export.main([str(bundle), "-o", str(bundle.parent / "new")]) == 3
    assert "unusable-bundle: expected a bundle of plain data" in capsys.readouterr().err


def test_a_device_or_a_giant_in_a_bundle_is_not_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    weights = bundle / "models" / "model.safetensors"
    weights.unlink()
    weights.symlink_to("/dev/zero")  # read_bytes() of it would never end
    assert export.main([str(bundle), "-o", str(bundle.parent / "new")]) == 3
    assert "unusable-bundle: expected SHA256SUMS, " in capsys.readouterr().err
    weights.unlink()
    with weights.open("wb") as stream:
        stream.truncate(5 * 2**30)  # a hole: it takes no space
    assert export.main([str(bundle), "-o", str(bundle.parent / "new")]) == 3
    assert "model.safetensors of more than 4294967296 bytes" in capsys.readouterr().err


# ---- Data lists ---------------------------------------------------------------------------------


def absolute(root: Path, outside: Path) -> str:
    return str(outside)


def upwards(root: Path, outside: Path) -> str:
    return f"../{outside.name}"


def linked(root: Path, outside: Path) -> str:
    (root / "link.nii.gz").symlink_to(outside)
    return "link.nii.gz"


@pytest.mark.parametrize("way", [absolute, upwards, linked])
def test_a_data_list_that_leads_outside(
    way: Callable[[Path, Path], str], tmp_path: Path, capsys: Captured
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    case = make_case(root, "case_000", fold=0)
    outside = tmp_path / "secret.nii.gz"
    case.images[0].rename(outside)
    entry = {**datalist_entry(case, root), "flair": way(root, outside)}
    listed = write_datalist(root / "list.json", {"training": [entry]})
    model = save_model(tmp_path / "run")
    masks = tmp_path / "masks"
    codes = [
        check.main([str(listed)]),
        infer.main(["-m", str(model), str(listed), "-o", str(masks)]),
        evaluate.main([str(masks), str(listed), "-o", str(tmp_path / "scores")]),
        train.main([str(listed), "--fold", "0", "--output-dir", str(tmp_path / "new")]),
    ]
    message = capsys.readouterr().err
    assert codes == [3, 3, 3, 3], message
    assert message.count(": outside-root: ") == 4
    assert not masks.exists()


def test_a_dicom_folder_whose_slices_are_links_to_outside(tmp_path: Path, capsys: Captured) -> None:
    root = tmp_path / "data"
    root.mkdir()
    case = make_case(root, "case_000", fold=0)
    volume = nib.load(case.images[0]).get_fdata().astype("int16")
    save_dicom(tmp_path / "secret", volume)
    (root / "series").mkdir()
    for path in (tmp_path / "secret").iterdir():
        (root / "series" / path.name).symlink_to(path)
    entry = {**datalist_entry(case, root), "flair": "series"}
    listed = write_datalist(root / "list.json", {"training": [entry]})
    assert check.main([str(listed)]) == 3
    assert "outside-root" in capsys.readouterr().err


# ---- Planted links ------------------------------------------------------------------------------


def plant(folder: Path, names: list[str], victims: Path) -> dict[Path, bytes]:
    """Put a link under each name, each to a file of its own; return what those files hold."""
    folder.mkdir(exist_ok=True)
    victims.mkdir()
    held = {}
    for index, name in enumerate(names):
        victim = victims / f"{index}.txt"
        victim.write_text(f"mine {index}")
        held[victim] = victim.read_bytes()
        (folder / name).symlink_to(victim)
    return held


def test_links_planted_under_every_name_that_inference_writes(cohort: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "run")
    words = ["-m", model, cohort, "--probabilities", "--uncertainty", 2, "--overwrite", "-o"]
    assert infer.main(list(map(str, [*words, tmp_path / "honest"]))) == 0
    names = sorted(path.name for path in (tmp_path / "honest").iterdir())
    assert len(names) == 2 * 5 + 5
    held = plant(tmp_path / "out", names, tmp_path / "victims")
    assert infer.main(list(map(str, [*words, tmp_path / "out"]))) == 0
    assert {path: path.read_bytes() for path in held} == held
    assert not any((tmp_path / "out" / name).is_symlink() for name in names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_a_record_behind_a_link_does_not_make_a_case_finished(
    cohort: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = save_model(tmp_path / "run")
    words = ["-m", model, cohort, "--cases", "case_000", "-o", tmp_path / "out"]
    assert infer.main(list(map(str, words))) == 0
    record = tmp_path / "out" / "case_000.json"
    record.rename(tmp_path / "elsewhere.json")
    record.symlink_to(tmp_path / "elsewhere.json")
    capsys.readouterr()
    assert infer.main(list(map(str, words))) == 0
    assert "1 cases segmented, 0 were finished before" in capsys.readouterr().out
    assert not record.is_symlink()


def test_links_planted_under_every_name_that_an_evaluation_writes(
    cohort: Path, tmp_path: Path
) -> None:
    for folder, kind in (("a", "shifted"), ("b", "perfect")):
        for index in range(2):
            write_prediction(tmp_path / folder, f"case_{index:03d}", kind)
    words = [tmp_path / "a", cohort, "--against", tmp_path / "b", "-o"]
    assert evaluate.main(list(map(str, [*words, tmp_path / "honest"]))) == 0
    names = sorted(path.name for path in (tmp_path / "honest").iterdir())
    assert len(names) == 5
    out = tmp_path / "out"
    held = plant(out, names, tmp_path / "victims")
    assert evaluate.main(list(map(str, [*words, out]))) == 2  # nothing of ours is there
    (out / "summary.json").unlink()
    shutil.copy(tmp_path / "honest" / "summary.json", out)
    assert evaluate.main(list(map(str, [*words, out]))) == 0
    assert {path: path.read_bytes() for path in held} == held
    assert not any((out / name).is_symlink() for name in names)


def test_a_pipe_in_place_of_the_log_does_not_hold_it_up(
    cohort: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "log.txt")
    words = ["-m", save_model(tmp_path / "run"), cohort, "-o", tmp_path / "out"]
    assert infer.main(list(map(str, words))) == 4
    assert "ResourceError: log.txt: " in capsys.readouterr().err


# ---- Nothing personal ---------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_that_is_written_names_the_machine_or_the_user(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, its masks, their scores and its bundle; names of files and all they hold."""
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-the-test")
    monkeypatch.setenv("USER", "user-of-the-test")
    outputs = tmp_path / "outputs"
    run, masks = outputs / "run", outputs / "masks"
    settings = ["preprocessing.border_crop=null", "training.max_epochs=1"]
    settings += ["network.settings.num_levels=2", "network.settings.num_filters=2"]
    changes = [word for setting in settings for word in ("--set", setting)]
    assert train.main([str(cohort), "--fold", "0", "--output-dir", str(run), *changes]) == 0
    assert infer.main(["-m", str(run), str(cohort), "--probabilities", "-o", str(masks)]) == 0
    scores = outputs / "scores"
    assert evaluate.main([str(masks), str(cohort), "-o", str(scores)]) == 0
    proven = Verification("phantom", 8, ("background",), 0.0, {})
    monkeypatch.setattr(exporting, "verify_bundle", lambda *_, **__: proven)
    assert export.main([str(run), "-o", str(outputs / "bundle"), "--zip"]) == 0
    # Names of four letters and fewer occur in anything that is long enough.
    names = [os.uname().nodename, getpass.getuser(), str(Path.home())]
    personal = [str(tmp_path), "host-of-the-test", "user-of-the-test"]
    personal += [name for name in names if len(name) > 5]
    found = []
    for path in sorted(outputs.rglob("*")):
        told = path.name.encode()
        told += path.read_bytes() if path.is_file() else b""
        if path.name.endswith(".nii.gz"):
            header = nib.load(path).header
            assert {header[key].item() for key in ("descrip", "aux_file", "db_name")} == {b""}
        found += [(path.name, word) for word in personal if word.encode() in told]
    assert found == []


def test_a_keras_file_whose_weights_lie_in_another_file(
    cohort: Path, tmp_path: Path, capsys: Captured
) -> None:
    """HDF5 lets a dataset be stored elsewhere: any file of this machine would become weights."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(10**6))
    file = tmp_path / "model2.h5"
    with h5py.File(file, "w") as written:
        group = written.create_group("model_weights/conv3d/conv3d")
        group.create_dataset(
            "kernel:0",
            shape=(3, 3, 3, 4, 16),
            dtype="f4",
            external=[(str(secret), 0, h5py.h5f.UNLIMITED)],
        )
    words = [cohort, "--fold", 0, "--init-weights", file, "--output-dir", tmp_path / "new"]
    code = train.main([*map(str, words), "--set", "preprocessing.border_crop=null"])
    assert code == 2
    assert "another file" in capsys.readouterr().err
