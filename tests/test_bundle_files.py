"""A bundle as a model: read as data, verified, and the same model as the run it was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_model

from pipeline.bundle.contents import bundle_files
from pipeline.errors import DataError
from pipeline.model.trained import TrainedModel, load_model

INFERER = {"window": None, "overlap": 0.5, "flips": False, "divisor": 2, "content_only": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("run")
    return load_model(save_model(folder, trained_on=("0123456789abcdef",)))


@pytest.fixture
def bundle(model: TrainedModel, tmp_path: Path) -> Path:
    folder = tmp_path / "tumours"
    files = bundle_files(model, inferer=INFERER)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_a_bundle_is_the_model_it_was_made_of(bundle: Path, model: TrainedModel) -> None:
    found = load_model(bundle)
    assert found.name == "tumours"
    assert found.digest == model.digest
    assert found.has_seen("Patient Zero") is False
    assert found.scores == model.scores
    for name, tensor in found.build().state_dict().items():
        assert torch.equal(tensor, model.weights[name])


def test_its_code_and_configurations_are_not_touched(bundle: Path) -> None:
    """Whatever a bundle from somewhere carries, none of it is imported or evaluated."""
    for name in ("transforms/__init__.py", "networks/__init__.py"):
        (bundle / name).write_text("raise SystemExit('executed')")
    (bundle / "configs" / "inference.json").write_text('{"run": "$exit(1)"}')
    assert load_model(bundle).label_values == (0, 1, 2, 4)


def edit(bundle: Path, name: str, change: Callable[[bytes], bytes], *, honest: bool) -> None:
    """Change a file; an `honest` change is also in SHA256SUMS."""
    path, sums = bundle / name, bundle / "SHA256SUMS"
    before = path.read_bytes()
    path.write_bytes(change(before))
    if honest:
        old, new = (hashlib.sha256(content).hexdigest() for content in (before, path.read_bytes()))
        sums.write_text(sums.read_text().replace(old, new))


@pytest.mark.parametrize("name", ["configs/metadata.json", "models/model.safetensors"])
def test_an_altered_file_is_named(bundle: Path, name: str) -> None:
    edit(bundle, name, lambda content: content[:-1] + b" ", honest=False)
    with pytest.raises(DataError, match=rf"tumours, {name}: unusable-bundle: .*SHA256SUMS"):
        load_model(bundle)


@pytest.mark.parametrize("name", ["SHA256SUMS", "models/model.safetensors"])
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(DataError, match=r"expected SHA256SUMS, .*found No such file"):
        load_model(bundle)


def without(key: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        document: dict[str, Any] = json.loads(content)
        del document["trained_model"][key]
        return json.dumps(document).encode()

    return change


@pytest.mark.parametrize("change", [without("header"), lambda _: b"{}", lambda _: b"[]"])
def test_a_bundle_of_something_else(bundle: Path, change: Callable[[bytes], bytes]) -> None:
    edit(bundle, "configs/metadata.json", change, honest=True)
    with pytest.raises(DataError, match=r"Only bundles made by pipeline\.export can be read"):
        load_model(bundle)


def test_weights_that_are_none(bundle: Path) -> None:
    edit(bundle, "models/model.safetensors", lambda _: b"PK\3\4 pickled", honest=True)
    with pytest.raises(DataError, match="expected weights in the safetensors format"):
        load_model(bundle)
