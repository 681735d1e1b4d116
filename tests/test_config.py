"""Settings: what is accepted, what is refused and in which words, and how layers are merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import (
    Settings,
    build_settings,
    differences,
    known_keys,
    merge,
    parse_assignments,
    preset,
    read_config,
    resumed,
)
from pipeline.errors import SettingsError
from pipeline.presets import PRESETS


def test_original_is_the_article() -> None:
    settings = build_settings(preset("original"))
    assert settings == Settings()
    assert settings.preprocessing.border_crop == ((8, 8), (8, 8), (6, 5))
    assert settings.preprocessing.normalization == "minmax"
    assert settings.preprocessing.decimals == 3
    assert settings.preprocessing.gaussian_sigma == 1.0
    assert settings.preprocessing.sharpen_strength == 0.3
    assert settings.training.loss == "cross_entropy"
    assert settings.training.learning_rate == 1e-3
    assert settings.training.adam_epsilon == 1e-7
    assert settings.training.batch_size == 1
    assert settings.training.max_epochs == 4


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_survives_its_own_json(name: str) -> None:
    settings = build_settings(preset(name))
    stored = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert build_settings(stored) == settings


def test_unknown_preset_is_named_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"found 'quik'\. Did you mean quick\?"):
        preset("quik")


def test_later_layers_win_setting_by_setting() -> None:
    settings = build_settings(
        {"training": {"max_epochs": 2, "batch_size": 3}}, {"training": {"max_epochs": 7}}
    )
    assert (settings.training.max_epochs, settings.training.batch_size) == (7, 3)


def test_merge_changes_neither_side() -> None:
    base, changes = {"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "b": {"z": 4}}
    assert merge(base, changes) == {"a": {"x": 1, "y": 3}, "b": {"z": 4}}
    assert base == {"a": {"x": 1}, "b": 2}
    assert changes == {"a": {"y": 3}, "b": {"z": 4}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"max_epochs": 0}}, "training.max_epochs: .*greater than or equal to 1"),
        ({"training": {"max_epochs": 4.0}}, "training.max_epochs: .*valid integer; found 4.0"),
        ({"training": {"max_epochs": True}}, "training.max_epochs: .*valid integer; found True"),
        ({"training": {"max_epochs": "4"}}, "training.max_epochs: .*valid integer; found '4'"),
        ({"training": {"amp": "off"}}, "training.amp: .*valid boolean; found 'off'"),
        ({"training": {"amp": 1}}, "training.amp: .*valid boolean; found 1"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: .*finite number"),
        ({"training": {"weight_decay": float("inf")}}, "training.weight_decay: .*finite number"),
        ({"training": {"loss": "mse"}}, "training.loss: .*'dice_ce'; found 'mse'"),
        ({"training": 5}, "training: .*found 5"),
        ({"seed": -1}, "seed: .*greater than or equal to 0; found -1"),
        ({"seed": 2**31}, "seed: .*less than 2147483648"),
        (
            {"preprocessing": {"border_crop": [[0, -1], [0, 0], [0, 0]]}},
            r"preprocessing.border_crop.0.1: .*greater than or equal to 0; found -1",
        ),
        ({"preprocessing": {"border_crop": [[0, 0]]}}, "preprocessing.border_crop.1: Field req"),
        ({"augmentation": {"flip_axes": [3]}}, "augmentation.flip_axes.0: .*0, 1 or 2; found 3"),
        (
            {"augmentation": {"deformation": {"patch_size": [64, 64, 0]}}},
            "augmentation.deformation.patch_size.2: .*greater than or equal to 1; found 0",
        ),
        (
            {"augmentation": {"appearance": {"gamma": [1.2, 1.5]}}},
            "augmentation.appearance.gamma.0: .*less than or equal to 1; found 1.2",
        ),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_settings(values)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (
            {"augmentation": {"deformation": {"probabilty": 0.2}}},
            "deformation.probabilty: .*Did you mean augmentation.deformation.probability?",
        ),
        ({"training": {"epochs": 3}}, "training.epochs: .*Did you mean training.max_epochs?"),
        ({"learning_rate": 1.0}, "learning_rate: .*Did you mean training.learning_rate?"),
        ({"trainin": {}}, "trainin: .*Did you mean training?"),
        ({"zzzzzz": 1}, r"zzzzzz: there is no such setting\.$"),
    ],
)
def test_unknown_keys_suggest_the_nearest(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(SettingsError, match=hint):
        build_settings(values)


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(SettingsError, match=r"(?s)seed: .*\n.*fold: ") as caught:
        build_settings({"seed": -1, "fold": -1})
    assert str(caught.value).count("\n") == 1


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().training.max_epochs = 5  # type: ignore[misc]


# ---- --set --------------------------------------------------------------------------------------


def test_assignments_are_json_or_text() -> None:
    assert parse_assignments(
        [
            "training.max_epochs=10",
            "training.loss=dice",
            "preprocessing.border_crop=null",
            "network.settings.blocks=[1, 2]",
            "fold=1",
            "network.name=a=b",
        ]
    ) == {
        "training": {"max_epochs": 10, "loss": "dice"},
        "preprocessing": {"border_crop": None},
        "network": {"settings": {"blocks": [1, 2]}, "name": "a=b"},
        "fold": 1,
    }


def test_a_whole_stage_does_not_undo_an_earlier_assignment() -> None:
    assert parse_assignments(["training.max_epochs=3", 'training={"batch_size": 2}']) == {
        "training": {"max_epochs": 3, "batch_size": 2}
    }


def test_the_last_of_two_assignments_wins() -> None:
    assert parse_assignments(["seed=1", "seed=2"]) == {"seed": 2}


@pytest.mark.parametrize("text", ["training.max_epochs", "=3", ""])
def test_an_assignment_needs_a_name_and_an_equals_sign(text: str) -> None:
    with pytest.raises(SettingsError, match=f"expected STAGE.NAME=VALUE; found '{text}'"):
        parse_assignments([text])


def test_a_plain_value_has_nothing_below_it() -> None:
    with pytest.raises(SettingsError, match=r"--set seed\.x=1: seed already has a plain value"):
        parse_assignments(["seed=3", "seed.x=1"])


# ---- --config -----------------------------------------------------------------------------------


def test_a_config_file_is_read_also_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"seed": 3}', encoding="utf-8-sig")
    assert read_config(path) == {"seed": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--config c\.json: expected a JSON file; No such file or directory$"),
        (b"{", r"--config c\.json: expected a JSON file; Expecting property name"),
        (b"\xff\xfe", r"--config c\.json: expected a JSON file; .*can't decode"),
        (b"[]", r"--config c\.json: expected a JSON object of settings"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_config(path)


# ---- Resuming -----------------------------------------------------------------------------------


def test_known_keys_are_dotted_and_complete() -> None:
    keys = known_keys()
    assert {"seed", "fold", "network.settings", "training.max_epochs"} <= set(keys)
    assert "training" not in keys
    assert len(keys) == len(set(keys))


def test_differences_show_both_values() -> None:
    right = build_settings({"seed": 1, "training": {"loss": "dice"}})
    assert differences(Settings(), right) == [
        "seed: 0 -> 1",
        "training.loss: 'cross_entropy' -> 'dice'",
    ]
    assert differences(right, right) == []


def test_a_resumed_run_may_be_longer_and_load_otherwise() -> None:
    wanted = build_settings(
        {
            "training": {"max_epochs": 9},
            "loading": {"num_workers": 2, "cache_memory_fraction": 0.1},
            "checkpoint": {"every_iterations": 5},
            "validation": {"num_pictures": 0},
        }
    )
    assert resumed(Settings(), wanted) is wanted


def test_a_resumed_run_may_not_become_another_one() -> None:
    wanted = build_settings({"seed": 1, "training": {"max_epochs": 9, "batch_size": 2}})
    message = r"these differ: seed: 0 -> 1; training.batch_size: 1 -> 2\. Leave them out"
    with pytest.raises(SettingsError, match=message):
        resumed(Settings(), wanted)


def test_windows_decide_a_validation_and_stay() -> None:
    wanted = build_settings({"inference": {"window": None}})
    with pytest.raises(SettingsError, match=r"inference.window: 'auto' -> None"):
        resumed(Settings(), wanted)


def test_another_network_does_not_inherit_the_settings_of_the_one_it_replaces() -> None:
    quick = preset("quick")
    assert build_settings(quick).network.settings
    other = build_settings(quick, {"network": {"name": "SegResNet"}}).network
    assert (other.name, other.settings) == ("SegResNet", {})
    layer = {"network": {"name": "SegResNet", "settings": {"init_filters": 8}}}
    assert build_settings(quick, layer).network.settings == {"init_filters": 8}
    same = build_settings(quick, {"network": {"name": "UNet3D", "settings": {"dropout": 0.5}}})
    assert same.network.settings == {**quick["network"]["settings"], "dropout": 0.5}


def test_stopping_early_needs_validations() -> None:
    changes = {"training": {"early_stopping": 2}, "validation": {"every_epochs": None}}
    with pytest.raises(SettingsError, match=r"early_stopping counts validations"):
        build_settings(changes)
