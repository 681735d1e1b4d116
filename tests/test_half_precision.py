"""A bundle in half precision is the rounded model, which computes in float32 everywhere."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import make_case
from ignite.engine import Engine
from models import save_model
from monai.handlers import CheckpointLoader

from networks import build_network
from pipeline import export
from pipeline.bundle.contents import bundle_files
from pipeline.bundle.conversion import to_torchscript, torchscript_allowed
from pipeline.bundle.gate_files import check_weights
from pipeline.bundle.weights import in_half_precision, rounded, weights_bytes
from pipeline.data.case_inputs import cases_of_folder
from pipeline.data.loading import LoadCase
from pipeline.errors import DataError
from pipeline.inference.predictor import Predictor
from pipeline.model.trained import TrainedModel, load_model

INFERER = {"window": None, "overlap": 0.5, "flips": False, "divisor": 2, "content_only": True}
FILES = ("models/model.pt", "models/model.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return load_model(save_model(tmp_path_factory.mktemp("run")))


def write(folder: Path, model: TrainedModel, *, half_precision: bool = True) -> Path:
    files = bundle_files(model, inferer=INFERER, half_precision=half_precision)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_rounding_is_that_of_numpy_and_changes_no_model(model: TrainedModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.weights.items()}
    found = rounded(model)
    assert found.weights.keys() == model.weights.keys()
    for name, tensor in found.weights.items():
        expected = before[name].numpy().astype(np.float16).astype(np.float32)
        assert np.array_equal(tensor.numpy(), expected), name
        assert tensor.dtype == torch.float32
        assert torch.equal(model.weights[name], before[name])
    assert found.digest != model.digest
    assert rounded(found).digest == found.digest


def test_what_is_no_float32_stays(model: TrainedModel) -> None:
    kept = {
        "num_batches": torch.tensor(70_001),
        "index": torch.tensor([1, 2**40]),
        "mask": torch.tensor([True]),
    }
    for weights in (rounded(replace(model, weights=kept)).weights, in_half_precision(kept)):
        for name, tensor in kept.items():
            assert weights[name].dtype == tensor.dtype
            assert torch.equal(weights[name], tensor)


@pytest.mark.parametrize("value", [65520.0, -1e30, float("inf"), float("nan")])
def test_a_weight_that_it_cannot_hold_is_named(model: TrainedModel, value: float) -> None:
    weights = {"fine": torch.ones(2), "wide": torch.tensor([1.0, value])}
    with pytest.raises(DataError, match=r"half-precision: .* up to 65504, .* found wide with "):
        rounded(replace(model, weights=weights))


def test_the_bundle_is_the_rounded_model(model: TrainedModel, tmp_path: Path) -> None:
    bundle = load_model(write(tmp_path / "bundle", rounded(model)))
    assert bundle.digest == rounded(model).digest
    for name, tensor in bundle.build().state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, rounded(model).weights[name])


def test_both_files_are_half_precision(model: TrainedModel, tmp_path: Path) -> None:
    bundle = write(tmp_path, rounded(model))
    stored = (
        torch.load(bundle / FILES[0], weights_only=True),
        safetensors.torch.load_file(bundle / FILES[1]),
    )
    for tensors in stored:
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
        assert tensors.keys() == model.weights.keys()


def test_a_bundle_exported_anew_has_the_same_bytes(model: TrainedModel, tmp_path: Path) -> None:
    """So one file of weights is enough to keep: the other can be made of it at any time."""
    bundle = write(tmp_path / "bundle", rounded(model))
    for name in (FILES[0], "configs/train.json"):
        (bundle / name).unlink()
    again = write(tmp_path / "again", rounded(load_model(bundle)))
    first = bundle_files(rounded(model), inferer=INFERER, half_precision=True)
    assert {name: (again / name).read_bytes() for name in first} == first


def test_what_a_network_has_under_two_names_is_stored_once() -> None:
    network = build_network("DynUNet", in_channels=1, out_channels=2, filters=[4, 8, 16])
    weights = network.state_dict()
    half = in_half_precision(weights)
    places = {name: tensor.data_ptr() for name, tensor in weights.items()}
    assert len(set(places.values())) < len(places)
    assert len({tensor.data_ptr() for tensor in half.values()}) == len(set(places.values()))
    sizes = [
        sum(storage.nbytes() for storage in _storages(weights_bytes(each)))
        for each in (half, weights)
    ]
    assert sizes[1] == 2 * sizes[0]


def _storages(content: bytes) -> list[torch.UntypedStorage]:
    tensors = torch.load(io.BytesIO(content), weights_only=True).values()
    storages = [tensor.untyped_storage() for tensor in tensors]
    return list({storage.data_ptr(): storage for storage in storages}.values())


def test_monai_loads_it_into_a_network_in_single_precision(
    model: TrainedModel, tmp_path: Path
) -> None:
    bundle = write(tmp_path, rounded(model))
    network = build_network(**model.network)
    loader = CheckpointLoader(str(bundle / FILES[0]), {"model": network}, map_location="cpu")
    loader(Engine(lambda *_: None))
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, rounded(model).weights[name])


def test_a_converted_network_is_the_rounded_one_in_single_precision(model: TrainedModel) -> None:
    half = weights_bytes(in_half_precision(rounded(model).weights))
    content = to_torchscript(model.network, half)
    with torchscript_allowed():
        state = torch.jit.load(io.BytesIO(content)).state_dict()
    assert state.keys() == model.weights.keys()
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, rounded(model).weights[name])


def test_the_gate_refuses_weights_of_the_other_precision(
    model: TrainedModel, tmp_path: Path
) -> None:
    """Whatever they are rounded from: float32 where half is stated, and the reverse."""
    exact = rounded(model)
    halves, singles = (
        write(tmp_path / str(half), exact, half_precision=half) for half in (True, False)
    )
    check_weights(halves, exact, half_precision=True)
    check_weights(singles, exact)
    for folder, half in ((singles, True), (halves, False)):
        with pytest.raises(DataError, match=r"model\.pt: gate-weights: expected the tensors of"):
            check_weights(folder, exact, half_precision=half)


def test_the_gate_refuses_halves_of_a_model_that_was_not_rounded(
    model: TrainedModel, tmp_path: Path
) -> None:
    folder = write(tmp_path, model)
    with pytest.raises(DataError, match=r"model\.pt: gate-weights: expected the tensors of"):
        check_weights(folder, model, half_precision=True)


@pytest.mark.slow
def test_an_export_tells_how_many_voxels_the_rounding_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "run")
    shape = (40, 48, 32)
    make_case(tmp_path / "cases", "case", shape=shape, labelled=False)
    case_folder = tmp_path / "cases" / "case"
    options = ["--half-precision", "--torchscript", "--onnx", "--case", str(case_folder)]
    assert export.main([str(folder), "-o", str(tmp_path / "bundle"), *options]) == 0
    model = load_model(folder)
    assert load_model(tmp_path / "bundle").digest == rounded(model).digest
    (case,) = cases_of_folder(case_folder, modalities=model.header["modality"])
    item = LoadCase(labels=False)(case)
    exact, halved = (
        Predictor([each], device=torch.device("cpu"), brain_only=True).predict(item)["classes"]
        for each in (model, rounded(model))
    )
    num_changed = int(np.count_nonzero(exact.numpy() != halved.numpy()))
    assert num_changed > 0
    printed = capsys.readouterr().out
    assert f"weights changed {num_changed} of these {np.prod(shape)} voxels." in printed
    for name in ("models/model.ts", "models/model.onnx"):
        assert f"{name}: the same classes" in printed
