"""Damaged and hostile checkpoints and bundles: our error, or a model that can be used."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import save_model
from mutants import flipped_bit, json_text, mutated_bytes, ours, with_strange_values

from pipeline.bundle.contents import bundle_files, sums_of
from pipeline.errors import DataError
from pipeline.model.bundle_files import METADATA, SUMS, WEIGHTS
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.trained import TrainedModel, load_model

FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RANDOMS = st.integers(0, 2**32).map(Random)
TINY = {"name": "UNet3D", "num_levels": 1, "num_filters": 1}
PLAIN = ("network", "preprocessing", "header", "settings", "versions", "progress", "trained_on")
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = save_model(
        tmp_path_factory.mktemp("run"), network=TINY, trained_on=("0123456789abcdef",)
    )
    return (folder / "best.pt").read_bytes()


@pytest.fixture(scope="module")
def bundle(checkpoint: bytes, tmp_path_factory: pytest.TempPathFactory) -> Files:
    path = tmp_path_factory.mktemp("run") / "best.pt"
    path.write_bytes(checkpoint)
    inferer = {"window": None, "overlap": 0.5, "flips": False, "divisor": 1, "content_only": True}
    files = bundle_files(load_model(path), inferer=inferer)
    return {name: files[name] for name in (METADATA, WEIGHTS)}


def used(path: Path) -> TrainedModel:
    """Read a model and do with it what inference does before the first image."""
    model = load_model(path)
    model.build()
    model.has_seen("somebody")
    assert model.digest
    assert model.regions
    assert model.label_values
    return model


def read(path: Path, content: bytes) -> TrainedModel | None:
    path.write_bytes(content)
    whole = ours(lambda: load_checkpoint(path))
    model = ours(lambda: used(path))
    assert model is None or whole is not None
    return model


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def stored(content: bytes) -> dict[str, Any]:
    values: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return values


# ---- Checkpoints --------------------------------------------------------------------------------


@FEW
@given(random=RANDOMS)
def test_damaged_bytes(tmp_path: Path, checkpoint: bytes, random: Random) -> None:
    read(tmp_path / "a.pt", mutated_bytes(random, checkpoint))


@FEW
@given(random=RANDOMS)
def test_no_flipped_bit_makes_another_model(
    tmp_path: Path, checkpoint: bytes, random: Random
) -> None:
    model = read(tmp_path / "a.pt", flipped_bit(random, checkpoint))
    if model is not None:  # the bit is in the padding between the parts, which nobody reads
        (tmp_path / "whole.pt").write_bytes(checkpoint)
        assert model.digest == load_model(tmp_path / "whole.pt").digest


@FEW
@given(random=RANDOMS, key=st.sampled_from(PLAIN))
def test_strange_values(tmp_path: Path, checkpoint: bytes, random: Random, key: str) -> None:
    content = stored(checkpoint)
    # As JSON without the tuple, which is no place for strange values.
    plain = {key: list(content[key]) if key == "trained_on" else content[key]}
    strange = with_strange_values(random, plain)
    changed = strange.get(key) if isinstance(strange, dict) else strange
    read(tmp_path / "a.pt", saved({**content, key: changed}))


@FEW
@given(random=RANDOMS)
def test_a_strange_pickle_under_right_checksums(
    tmp_path: Path, checkpoint: bytes, random: Random
) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(checkpoint)) as source,
        zipfile.ZipFile(buffer, "w") as target,
    ):
        for name in source.namelist():
            part = source.read(name)
            target.writestr(name, mutated_bytes(random, part) if ".pkl" in name else part)
    read(tmp_path / "a.pt", buffer.getvalue())


class Harmful:
    """What a stranger's pickle may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("value", [Harmful(), bytearray(10), {1}, 2j, torch.float32, torch.Size()])
@pytest.mark.parametrize("key", ["header", "progress"])
def test_nothing_but_tensors_and_plain_values(
    tmp_path: Path, checkpoint: bytes, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").write_bytes(saved({**stored(checkpoint), key: value}))
    with pytest.raises(DataError, match=r"foreign file \(UnpicklingError\)"):
        load_model(Path("a.pt"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("stated", [torch.zeros(3), [["x"] * 9] * 9, "1", 1.0, True, None])
def test_a_format_that_is_no_number(tmp_path: Path, checkpoint: bytes, stated: Any) -> None:
    (tmp_path / "a.pt").write_bytes(saved({**stored(checkpoint), "format": stated}))
    with pytest.raises(DataError, match="expected format 1; found none"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "best.pt")
    with pytest.raises(DataError, match="expected a checkpoint; found a pipe or a device"):
        load_checkpoint(tmp_path / "best.pt")


def test_a_plain_pickle_of_another_protocol(tmp_path: Path, checkpoint: bytes) -> None:
    content = io.BytesIO()
    torch.save(stored(checkpoint), content, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    (tmp_path / "a.pt").write_bytes(content.getvalue())
    with pytest.raises(DataError, match=r"foreign file \(UnpicklingError\)"):
        load_checkpoint(tmp_path / "a.pt")


# ---- Bundles ------------------------------------------------------------------------------------


def read_bundle(folder: Path, files: Files, *, stated: Files | None = None) -> TrainedModel | None:
    """Write a bundle whose SHA256SUMS is that of `stated`, by default honest, and read it."""
    sums = {SUMS: sums_of(files if stated is None else stated)}
    for name, content in {**files, **sums}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return ours(lambda: used(folder))


@FEW
@given(random=RANDOMS, name=st.sampled_from([METADATA, WEIGHTS]), honest=st.booleans())
def test_damaged_files_of_a_bundle(
    tmp_path: Path, bundle: Files, random: Random, name: str, honest: bool
) -> None:
    files = {**bundle, name: mutated_bytes(random, bundle[name])}
    model = read_bundle(tmp_path, files, stated=None if honest else bundle)
    assert honest or model is None or files == bundle


@FEW
@given(random=RANDOMS)
def test_strange_values_in_a_bundle(tmp_path: Path, bundle: Files, random: Random) -> None:
    document = json.loads(bundle[METADATA])
    document["trained_model"] = with_strange_values(random, document["trained_model"])
    read_bundle(tmp_path, {**bundle, METADATA: json.dumps(document).encode()})
    read_bundle(tmp_path, {**bundle, METADATA: json_text(random, document)})


def rename_type(header: dict[str, Any]) -> None:
    header["output.bias"]["dtype"] = "F8_E8M0"


def overlap(header: dict[str, Any]) -> None:
    header["output.bias"]["data_offsets"] = [0, 16]


def grow(header: dict[str, Any]) -> None:
    header["output.bias"]["shape"] = [2**40, 2**40]


@pytest.mark.parametrize("change", [rename_type, overlap, grow])
def test_a_safetensors_header_that_lies(
    tmp_path: Path, bundle: Files, change: Callable[[dict[str, Any]], None]
) -> None:
    size = int.from_bytes(bundle[WEIGHTS][:8], "little")
    header = json.loads(bundle[WEIGHTS][8 : 8 + size])
    changed = copy.deepcopy(header)
    change(changed)
    text = json.dumps(changed).encode()
    weights = len(text).to_bytes(8, "little") + text + bundle[WEIGHTS][8 + size :]
    assert read_bundle(tmp_path, {**bundle, WEIGHTS: weights}) is None


@pytest.mark.parametrize("name", [WEIGHTS, SUMS])
def test_a_device_in_a_bundle_is_not_read(tmp_path: Path, bundle: Files, name: str) -> None:
    assert read_bundle(tmp_path, bundle) is not None
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="found A folder or a device"):
        load_model(tmp_path)


def test_texts_of_absurd_size_are_not_read(tmp_path: Path, bundle: Files) -> None:
    assert read_bundle(tmp_path, bundle) is not None
    os.truncate(tmp_path / SUMS, 2**33)
    with pytest.raises(DataError, match=r"SHA256SUMS of more than 16777216 bytes"):
        load_model(tmp_path)
