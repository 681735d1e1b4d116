"""Checkpoints: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import DataError, ResourceError
from pipeline.model import checkpoint
from pipeline.model.checkpoint import (
    FORMAT,
    REQUIRED_KEYS,
    load_checkpoint,
    require_same_modalities,
    save_checkpoint,
)

WEIGHTS = torch.arange(1000, dtype=torch.float32)


def make_content(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = dict.fromkeys(REQUIRED_KEYS, None)
    return {
        **content,
        "format": FORMAT,
        "weights": {"layer": WEIGHTS},
        "settings": {"seed": 3, "tuple": (1, 2.5, None, "x")},
        **changes,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_content())
    return path


def test_what_is_saved_is_loaded(path: Path) -> None:
    content = load_checkpoint(path)
    assert content.keys() == REQUIRED_KEYS
    assert torch.equal(content["weights"]["layer"], WEIGHTS)
    assert content["settings"] == {"seed": 3, "tuple": (1, 2.5, None, "x")}


def test_the_old_file_is_replaced_and_nothing_else_is_left(path: Path) -> None:
    save_checkpoint(path, make_content(progress=5))
    assert load_checkpoint(path)["progress"] == 5
    assert list(path.parent.iterdir()) == [path]


def test_incomplete_content_is_not_saved(tmp_path: Path) -> None:
    content = make_content()
    del content["header"], content["weights"]
    with pytest.raises(ValueError, match=r"checkpoint lacks \['header', 'weights'\]"):
        save_checkpoint(tmp_path / "last.pt", content)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match=r"last\.pt: the disk is full: \d+ bytes needed"):
        save_checkpoint(path, make_content(progress=5))
    monkeypatch.undo()
    assert load_checkpoint(path)["progress"] is None
    assert list(path.parent.iterdir()) == [path]


# ---- What is no checkpoint ----------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = r"best\.pt: unusable-checkpoint: expected a checkpoint; found No such file"
    with pytest.raises(DataError, match=message):
        load_checkpoint(tmp_path / "best.pt")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found Is a directory"):
        load_checkpoint(tmp_path)


def test_one_flipped_bit_in_the_weights_is_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # In the middle of the weights, where torch itself reads whatever is there.
    position = data.index(WEIGHTS.numpy().tobytes()) + 2001
    data[position] ^= 1
    path.write_bytes(data)
    assert isinstance(torch.load(path, weights_only=True), dict)
    with pytest.raises(DataError, match=r"found a damaged or foreign file \(BadZipFile\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_torn_file_is_found(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match="a whole checkpoint of this project"):
        load_checkpoint(path)


def test_no_flipped_bit_gives_other_weights(path: Path) -> None:
    data = path.read_bytes()
    changed = path.with_name("changed.pt")
    num_refused = 0
    for position in range(0, len(data), 29):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        changed.write_bytes(damaged)
        try:
            content = load_checkpoint(changed)
        except DataError:
            num_refused += 1
        else:  # in the padding between the parts, which nobody reads
            assert torch.equal(content["weights"]["layer"], WEIGHTS)
            assert content["settings"]["seed"] == 3
    # The weights alone are 4000 of the file's 5 to 6 thousand bytes.
    assert num_refused > 4000 / 29


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save(make_content(header=Harmful()), tmp_path / "last.pt")
    with pytest.raises(DataError, match=r"foreign file \(UnpicklingError\)"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "executed").exists()


def test_other_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(DataError, match=r"foreign file \(RuntimeError\)"):
        load_checkpoint(path)


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(pickle.dumps(make_content(weights=None)))
    with pytest.raises(DataError, match=r"foreign file \(BadZipFile\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"weights": {}}, [1, 2]])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(DataError, match=r"expected the keys \['format', .*; found other content"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    torch.save(make_content(format=FORMAT + 1), tmp_path / "last.pt")
    with pytest.raises(DataError, match="expected format 1; found format 2"):
        load_checkpoint(tmp_path / "last.pt")


def test_weights_come_to_the_cpu_whatever_they_were_saved_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    original = torch.load

    def load(file: io.BufferedReader, **options: Any) -> Any:
        asked.update(options)
        return original(file, **options)

    monkeypatch.setattr(checkpoint.torch, "load", load)
    load_checkpoint(path)
    assert asked == {"map_location": "cpu", "weights_only": True}


# ---- Modalities ---------------------------------------------------------------------------------


def test_the_same_modalities_are_accepted() -> None:
    require_same_modalities({"modality": ["t1", "t2"]}, {"modality": ("t1", "t2")})


@pytest.mark.parametrize("modalities", [["t2", "t1"], ["t1"], ["t1", "flair"]])
def test_other_modalities_or_another_order_are_refused(modalities: list[str]) -> None:
    message = r"modality-order: expected the checkpoint's modalities \['t1', 't2'\]; found \["
    with pytest.raises(DataError, match=message):
        require_same_modalities({"modality": modalities}, {"modality": ["t1", "t2"]})
