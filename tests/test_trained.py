"""A model is what its checkpoint says, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS
from models import HEADER, ROW, UNET, save_model

from pipeline.config import build_settings
from pipeline.errors import DataError
from pipeline.model.checkpoint import require_same_labels
from pipeline.model.trained import load_model, require_alike, subject_digest


def test_a_run_is_its_best_checkpoint(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "quick", seed=1)
    save_model(folder, name="last.pt", seed=2)
    model = load_model(folder)
    assert model.name == "quick/best.pt"
    assert model.digest == load_model(folder / "best.pt").digest
    assert model.digest != load_model(folder / "last.pt").digest
    assert model.label_values == tuple(LABELS.values())
    assert model.regions == {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    assert model.header == HEADER


def test_the_network_is_built_with_its_weights_and_for_use(tmp_path: Path) -> None:
    model = load_model(save_model(tmp_path))
    network = model.build()
    assert not network.training
    assert network.divisor == 2
    for name, value in network.state_dict().items():
        assert torch.equal(value, model.weights[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"preprocessing": {"decimals": 2}},
        {"network": {**UNET, "dropout": 0.5}},
        {"header": {**HEADER, "labels": {**LABELS, "enhancing_tumour": 3}}},
    ],
)
def test_the_digest_tells_apart_whatever_decides_a_mask(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    first = load_model(save_model(tmp_path / "first"))
    assert load_model(save_model(tmp_path / "same")).digest == first.digest
    assert load_model(save_model(tmp_path / "other", **changes)).digest != first.digest


def test_scores_are_those_of_these_weights(tmp_path: Path) -> None:
    """A checkpoint between two validations has the history, but other weights."""
    assert load_model(save_model(tmp_path / "a")).scores == {
        "dice_mean": 0.5,
        "dice_WT": 0.7,
        "background_dice_WT": 0.0,
    }
    later = {"counters": {"iteration": 8, "history": [dict(ROW)]}}
    assert load_model(save_model(tmp_path / "b", progress=later)).scores == {}
    unvalidated = {"counters": {"iteration": 6, "history": [{"iteration": 6}]}}
    assert load_model(save_model(tmp_path / "c", progress=unvalidated)).scores == {}
    new = {"counters": {"iteration": 1, "history": []}}
    assert load_model(save_model(tmp_path / "d", progress=new)).scores == {}


def test_it_knows_whom_it_has_seen_without_naming_anybody(tmp_path: Path) -> None:
    seen = subject_digest("Patient Zero")
    assert seen == hashlib.sha256(b"Patient Zero").hexdigest()[:16]
    model = load_model(save_model(tmp_path / "a", trained_on=(seen,)))
    assert model.has_seen("Patient Zero") is True
    assert model.has_seen("Patient One") is False
    assert load_model(save_model(tmp_path / "b")).has_seen("Patient Zero") is None


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a run's folder with best.pt.*found a folder without"):
        load_model(tmp_path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    weights = load_model(folder).weights
    save_model(folder, network={**UNET, "num_levels": 3}, weights=weights)
    with pytest.raises(DataError, match=r"best.pt: unusable-model: expected the weights of"):
        load_model(folder).build()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modality", ["t1", "flair", "t1ce", "t2"]),
        ("labels", {**LABELS, "enhancing_tumour": 3}),
        ("regions", {"WT": ["oedema"]}),
    ],
)
def test_an_ensemble_speaks_of_the_same_things(tmp_path: Path, key: str, value: Any) -> None:
    first = load_model(save_model(tmp_path / "a"))
    require_alike([first, load_model(save_model(tmp_path / "b", seed=1))])
    other = load_model(save_model(tmp_path / "c", header={**HEADER, key: value}))
    with pytest.raises(DataError, match=rf"c/best.pt.*the {key} of a/best.pt"):
        require_alike([first, other])


def test_labels_must_be_the_same_but_not_their_values() -> None:
    changed = {"labels": {**LABELS, "enhancing_tumour": 3}}
    require_same_labels(changed, HEADER)
    swapped = {"labels": dict(reversed(LABELS.items()))}
    with pytest.raises(DataError, match=r"expected the checkpoint's labels \['background', 'nec"):
        require_same_labels(swapped, HEADER)


def test_settings_that_came_later_have_their_defaults(tmp_path: Path) -> None:
    settings = build_settings().model_dump(mode="json")
    del settings["training"]["dice_smoothing"]
    model = load_model(save_model(tmp_path, settings=settings))
    assert model.settings == build_settings().model_dump(mode="json")
