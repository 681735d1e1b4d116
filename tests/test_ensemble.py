"""Several networks in one: as a network, and as a checkpoint of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import datalist_entry, make_case, write_datalist
from models import SEED, UNET, save_model

from networks import build_network
from pipeline import infer
from pipeline.errors import DataError, SettingsError
from pipeline.model.checkpoint import ENSEMBLE, load_checkpoint
from pipeline.model.ensemble import save_ensemble
from pipeline.model.trained import load_model

SETTINGS: dict[str, Any] = {"num_levels": 2, "num_filters": 2, "dropout": 0.0}
IMAGE = torch.randn(1, 2, 4, 6, 4, generator=torch.Generator().manual_seed(0))


def save_fold(folder: Path, number: int, **changes: Any) -> Path:
    digest = f"{number}" * 16
    changes = {"trained_on": (digest,), "seed": number} | changes
    return save_model(folder / f"fold_{number}", **changes) / "best.pt"


def save(folder: Path, *paths: Path, **postprocessing: float | None) -> Path:
    path = folder / ENSEMBLE
    save_ensemble(paths, path, postprocessing=postprocessing, scores={"dice_mean": 0.25})
    return path


def one_case(folder: Path) -> Path:
    """Return the data list of one case."""
    (folder / "data").mkdir()
    case = make_case(folder / "data", "case_000", fold=0)
    entry = datalist_entry(case, folder / "data")
    return write_datalist(folder / "data" / "list.json", {"training": [entry]})


def test_it_gives_the_mean_of_the_probabilities() -> None:
    torch.manual_seed(0)
    network = build_network("UNet3D", in_channels=2, out_channels=3, num_members=3, **SETTINGS)
    network.eval()
    with torch.no_grad():
        expected = sum(torch.softmax(member(IMAGE), dim=1) for member in network.members) / 3
        # The logarithm and back again, in float32.
        torch.testing.assert_close(
            torch.softmax(network(IMAGE), dim=1), expected, rtol=0, atol=1e-6
        )
    assert network.divisor == 2


def test_its_members_speak_of_classes_in_training_too() -> None:
    regions = [[1, 2], [1]]
    network = build_network(
        "UNet3D", in_channels=2, out_channels=3, num_members=2, regions=regions, **SETTINGS
    )
    expected = network.eval()(IMAGE)
    assert torch.equal(network.train()(IMAGE), expected)
    assert network.training
    assert expected.shape[1] == 3


def test_a_number_of_members_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="num_members must be at least 1; found 0"):
        build_network("UNet3D", in_channels=2, out_channels=3, num_members=0)


def test_a_folder_of_folds_is_read_as_one_model(tmp_path: Path) -> None:
    paths = [save_fold(tmp_path, number) for number in (1, 2)]
    save(tmp_path, *paths, min_et_volume_ml=0.5)
    model = load_model(tmp_path)
    assert model.network["num_members"] == 2
    assert model.trained_on == ("1" * 16, "2" * 16)
    assert model.scores == {"dice_mean": 0.25}
    assert model.settings["inference"]["min_et_volume_ml"] == 0.5
    members = [load_model(path).build() for path in paths]
    image = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = sum(torch.softmax(member(image), dim=1) for member in members) / 2
        found = torch.softmax(model.build()(image), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_whom_a_member_was_trained_on_may_be_unknown(tmp_path: Path) -> None:
    paths = [save_fold(tmp_path, 1), save_fold(tmp_path, 2, trained_on=None)]
    assert load_checkpoint(save(tmp_path, *paths))["trained_on"] is None


def test_one_model_is_no_ensemble(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needs at least two models; found 1"):
        save(tmp_path, save_fold(tmp_path, 1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": {**UNET, "num_filters": 3}}, "the network of the other members"),
        ({"preprocessing": {"decimals": 2}}, "the preprocessing of the other members"),
    ],
    ids=["network", "preprocessing"],
)
def test_members_of_other_settings_are_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    paths = [save_fold(tmp_path, 1), save_fold(tmp_path, 2, **change)]
    with pytest.raises(DataError, match=rf"(?s)fold_2/best\.pt.*{named}"):
        save(tmp_path, *paths)
    assert not (tmp_path / ENSEMBLE).exists()


def test_masks_are_those_of_the_members_together_cleaned_as_the_ensemble_says(
    tmp_path: Path,
) -> None:
    """`-m FOLDER` equals `-m FOLD -m FOLD`, and takes over the ensemble's thresholds."""
    paths = [save_fold(tmp_path, number, seed=SEED) for number in (1, 2)]
    save(tmp_path, *paths, min_et_volume_ml=1000.0)
    cohort = one_case(tmp_path)
    members = [text for path in paths for text in ("-m", str(path))]
    options = {
        "one": ["-m", str(tmp_path), "--min-et-ml", "0"],
        "many": members,
        "clean": ["-m", str(tmp_path)],
        "many clean": [*members, "--min-et-ml", "1000"],
    }
    masks = {}
    for name, chosen in options.items():
        out = tmp_path / name
        assert infer.main([str(cohort), *chosen, "-o", str(out), "--device=cpu"]) == 0
        (mask,) = out.glob("*_seg.nii.gz")
        masks[name] = mask.read_bytes()
    assert masks["one"] == masks["many"]
    assert masks["clean"] == masks["many clean"] != masks["one"]
    record = json.loads(next((tmp_path / "clean").glob("case_*.json")).read_text())
    assert record["settings"]["min_et_volume_ml"] == 1000.0


def test_models_that_differ_in_how_masks_are_made_need_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / name for name in "ab"]
    for number, folder in enumerate(folders, start=1):
        paths = [save_fold(folder, seed) for seed in (1, 2)]
        save(folder, *paths, min_component_ml=float(number))
    models = [text for folder in folders for text in ("-m", str(folder))]
    command = [str(one_case(tmp_path)), *models, "-o", str(tmp_path / "out"), "--device=cpu"]
    assert infer.main(command) == 2
    assert "differ in inference.min_component_ml: 2.0 and 1.0" in capsys.readouterr().err
    assert infer.main([*command, "--min-component-ml=3"]) == 0
