"""What a checkpoint or a bundle says: judged value by value, whatever a stranger put there."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS
from models import HEADER, UNET, save_model

from networks import NETWORKS, build_network
from pipeline.config import build_settings
from pipeline.errors import DataError
from pipeline.model.building import built_with_weights
from pipeline.model.pickles import judge_pickle
from pipeline.model.trained import load_model
from pipeline.model.values import judged_values

TINY: dict[str, Any] = {"name": "UNet3D", "num_levels": 1, "num_filters": 1}
BASE = {**TINY, "in_channels": 4, "out_channels": 4}
SMALL: dict[str, dict[str, Any]] = {
    "UNet3D": TINY,
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "DynUNet": {"filters": [4, 4, 4]},
    "SwinUNETR": {"feature_size": 12},
}


def values(**changes: Any) -> dict[str, Any]:
    """Return sound values, some replaced; `weights` are those of `TINY`."""
    return {
        "weights": build_network(**BASE).state_dict(),
        "network": BASE,
        "preprocessing": {"divisor": 1},
        "header": HEADER,
        "settings": {},
        "versions": {"torch": "2.13.0"},
        "scores": {"dice_mean": 0.5},
        "trained_on": None,
        **changes,
    }


def judged(**changes: Any) -> dict[str, Any]:
    return judged_values(values(**changes), name="run/best.pt", max_weight_bytes=10_000)


def laughs() -> list[Any]:
    """Return 41 small lists that print as a million million words."""
    value: list[Any] = ["lol"]
    for _ in range(40):
        value = [value, value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def test_sound_values_pass_and_missing_settings_get_their_defaults() -> None:
    given = values(trained_on=["0123456789abcdef"])
    found = judged_values(given, name="run/best.pt", max_weight_bytes=10_000)
    assert found["settings"] == build_settings().model_dump(mode="json")
    assert found["trained_on"] == ("0123456789abcdef",)
    unchanged = given.keys() - {"settings", "trained_on"}
    assert all(found[key] is given[key] for key in unchanged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": None}, r"expected an object \(network\); found None"),
        ({"versions": torch.zeros(3)}, r"expected an object \(versions\); .* the type Tensor"),
        ({"network": {**BASE, "dropout": laughs()}}, r"a few levels \(network\); found more"),
        ({"network": {**BASE, "dropout": endless()}}, r"a few levels \(network\); found more"),
        ({"settings": {"network": {3: 4}}}, r"expected names as keys \(settings\); found others"),
        ({"network": {**BASE, "norm": torch.float32}}, r"plain values \(network\); .*type dtype"),
        ({"network": {**BASE, "dropout": float("nan")}}, r"plain values \(network\); found"),
        ({"versions": {"torch": "\x1b[2J"}}, r"plain values \(versions\); found a value of the"),
        ({"weights": [1]}, r"expected tensors by their names \(weights\)"),
        ({"weights": {("a",): torch.zeros(1)}}, r"expected tensors by their names \(weights\)"),
        ({"weights": {"a": 3}}, r"expected an ordinary tensor as a \(weights\); found 3"),
        (
            {"weights": {"a": torch.zeros(1).expand(10**6, 10**6)}},
            r"at most the 10000 bytes of the file \(weights\); found 4000000000000",
        ),
        (
            {"header": {**HEADER, "labels": {"a": 1}}},
            r"model, .*: label-order: expected background",
        ),
        ({"header": {"name": "tests"}}, r"modality: missing-key"),
        ({"header": {**HEADER, "modality": ["T1w"]}}, r"the header of a data list as checkpoints"),
        ({"network": {**BASE, "name": ["UNet3D"]}}, r"expected one of UNet3D, .*\(network\.name\)"),
        ({"network": {**BASE, "name": "os.system"}}, r"\(network\.name\); found 'os\.system'"),
        ({"network": {**BASE, "in_channels": 3}}, r"expected 4 \(network\.in_channels\); found 3"),
        ({"network": {**BASE, "out_channels": 10**8}}, r"4 \(network\.out_channels\); found 10000"),
        ({"network": {**BASE, "num_filters": 10**9}}, r"4096 \(network\.num_filters\); found 1000"),
        ({"network": {**BASE, "filters": [10**6]}}, r"numbers up to 4096 \(network\.filters\)"),
        ({"preprocessing": {}}, r"a count of voxels \(preprocessing\.divisor\); found None"),
        ({"preprocessing": {"divisor": 2, "keys": []}}, r"found preprocessing\.keys: there is no"),
        ({"settings": {"seed": "x"}}, r"the settings of a run; found seed: Input should be"),
        ({"versions": {"torch": 2}}, r"expected texts \(versions\)"),
        ({"scores": {"dice_mean": "high"}}, r"expected numbers \(scores\)"),
        ({"trained_on": ["Jane Doe"]}, r"expected digests \(trained_on\)"),
        ({"trained_on": 1 + 2j}, r"expected digests \(trained_on\)"),
    ],
)
def test_a_value_that_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        judged(**changes)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, dtype=torch.complex64),
        torch.empty(3, device="meta"),
        torch.zeros(3, requires_grad=True),
        torch.nn.Parameter(torch.zeros(3)),
        torch.zeros(3).to_sparse(),
        torch._neg_view(torch.zeros(3)),
    ],
)
def test_only_ordinary_tensors_are_weights(tensor: torch.Tensor) -> None:
    with pytest.raises(DataError, match="expected an ordinary tensor as a"):
        judged(weights={"a": tensor})


@pytest.mark.parametrize(
    "progress",
    [None, {}, {"counters": 3}, {"counters": {"history": 3}}, {"counters": {"history": [1]}}],
)
def test_progress_without_a_history(tmp_path: Path, progress: Any) -> None:
    folder = save_model(tmp_path, network=TINY, progress=progress)
    with pytest.raises(DataError, match=r"expected counters with a history \(progress\)"):
        load_model(folder)


def test_a_score_that_is_no_number_is_none(tmp_path: Path) -> None:
    row = {"iteration": 6, "dice_mean": 0.5, "dice_ET": float("nan")}
    folder = save_model(
        tmp_path, network=TINY, progress={"counters": {"iteration": 6, "history": [row]}}
    )
    assert load_model(folder).scores == {"dice_mean": 0.5}


# ---- Building -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_sketched(name: str) -> None:
    """The sketch has the shapes of the network, or its own weights would be refused."""
    network = {"name": name, "in_channels": 2, "out_channels": 3, **SMALL[name]}
    original = build_network(**network)
    built = built_with_weights(network, original.state_dict(), divisor=original.divisor)
    for key, tensor in original.state_dict().items():
        assert torch.equal(tensor, built.state_dict()[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_filters": 4000}, r"encoder\.0\.0\.0\.weight: torch\.float32 of the shape \(1, 4, 3"),
        ({"num_levels": 2}, r"encoder\.1\.0\.0\.weight: missing, not torch\.float32"),
        ({"norm": "instance"}, r"encoder\.0\.0\.1\.weight: missing"),
        ({"num_levels": 4000}, r"."),
        ({"kernel_size": 4095}, r"encoder\.0\.0\.0\.weight: .*4095"),
    ],
)
def test_another_network_is_told_before_it_takes_memory(
    changes: dict[str, Any], message: str
) -> None:
    weights = build_network(**BASE).state_dict()
    with pytest.raises((ValueError, RuntimeError), match=message):
        built_with_weights({**BASE, **changes}, weights, divisor=1)


def test_a_network_of_endless_layers_is_not_made() -> None:
    blocks = {"name": "SegResNet", "blocks_down": [4096, 1], "blocks_up": [1]}
    network = {**blocks, "in_channels": 4, "out_channels": 4}
    with pytest.raises(ValueError, match="more layers than there are weights"):
        built_with_weights(network, {"a": torch.zeros(1)}, divisor=2)


def test_the_padding_is_the_networks() -> None:
    with pytest.raises(ValueError, match="images padded to multiples of 4096, not of 1"):
        built_with_weights(BASE, build_network(**BASE).state_dict(), divisor=4096)


def test_a_model_that_cannot_be_built_is_our_error(tmp_path: Path) -> None:
    folder = save_model(tmp_path, network=UNET)
    content = torch.load(folder / "best.pt", weights_only=True)
    content["network"]["num_filters"] = 4000
    torch.save(content, folder / "best.pt")
    with pytest.raises(DataError, match=r"found encoder\.0\.0\.0\.weight: .*\(2, 4, 3, 3, 3\)"):
        load_model(folder).build()


# ---- Pickles ------------------------------------------------------------------------------------


def test_tensors_and_plain_values_are_all_that_a_pickle_names() -> None:
    judge_pickle(pickle.dumps({"a": OrderedDict(b=(1, 2.5, None, "x"))}, protocol=2))


@pytest.mark.parametrize("value", [Counter("a"), bytearray(5), {1}, 1j, b"x", torch.float32])
def test_whatever_else_it_names_is_refused(value: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="the pickle names '"):
        judge_pickle(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_protocol_is_refused(protocol: int) -> None:
    with pytest.raises(pickle.UnpicklingError, match=f"pickle protocol {protocol}"):
        judge_pickle(pickle.dumps(LABELS, protocol=protocol))


def test_what_is_no_pickle() -> None:
    with pytest.raises(ValueError, match="pickle exhausted before seeing STOP"):
        judge_pickle(b"")
