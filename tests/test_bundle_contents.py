"""What is in a bundle before it is run: configurations, metadata, documents, weights."""

from __future__ import annotations

import configparser
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import safetensors.torch
import torch
from conftest import LABELS, MODALITIES
from models import HEADER, save_model

from networks import build_network
from pipeline.bundle import documents
from pipeline.bundle.configs import all_configs, input_ids, modality_ids
from pipeline.bundle.contents import bundle_files
from pipeline.bundle.metadata import FLOORS, metadata, required_packages, smallest_multiple_of
from pipeline.bundle.weights import safetensors_bytes, weights_bytes
from pipeline.errors import DataError, ResourceError, SettingsError
from pipeline.model.trained import TrainedModel, load_model

ROOT = Path(__file__).parents[1]
INFERER = {"window": None, "overlap": 0.5, "flips": False, "divisor": 2, "content_only": True}
# All that MONAI evaluates in our configurations: paths, the device, a switch, the run itself.
EXPRESSIONS = {
    "$@bundle_root + '/models/model.pt'",
    "$@bundle_root + '/results'",
    "$@bundle_root + '/evaluation'",
    "$@bundle_root + '/training'",
    "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "$@network_def.to",
    "$@network.parameters()",
    "$not @save_probabilities",
    "$@evaluator.run()",
    "$@train#trainer.run()",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return load_model(save_model(tmp_path_factory.mktemp("run")))


def with_header(model: TrainedModel, **changes: Any) -> TrainedModel:
    return replace(model, header={**HEADER, **changes})


def files_of(model: TrainedModel) -> dict[str, bytes]:
    return bundle_files(model, inferer=INFERER)


def texts_in(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list)):
        for item in node.values() if isinstance(node, dict) else node:
            yield from texts_in(item)


def test_the_layout_is_that_of_a_bundle_and_of_a_hugging_face_repository(
    model: TrainedModel,
) -> None:
    names = set(files_of(model))
    packages = {name for name in names if name.startswith(("transforms/", "networks/"))}
    assert names - packages == {
        "LICENSE",
        "README.md",
        "SHA256SUMS",
        "configs/evaluate.json",
        "configs/inference.json",
        "configs/metadata.json",
        "configs/train.json",
        "docs/README.md",
        "models/model.pt",
        "models/model.safetensors",
    }
    for name in packages:
        assert files_of(model)[name] == (ROOT / name).read_bytes()


def test_nothing_is_evaluated_but_what_monai_needs(model: TrainedModel) -> None:
    for config in all_configs(model, inferer=INFERER).values():
        found = {text for text in texts_in(config) if text.startswith("$")}
        assert found <= EXPRESSIONS


def test_no_path_of_this_machine_is_in_a_bundle(model: TrainedModel) -> None:
    for name, content in files_of(model).items():
        assert str(ROOT).encode() not in content, name
        assert str(Path.home()).encode() + b"/" not in content, name


def test_a_model_read_from_its_bundle_is_the_same(model: TrainedModel, tmp_path: Path) -> None:
    for name, content in files_of(model).items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    again = load_model(tmp_path / "bundle")
    assert again.digest == model.digest
    assert (again.settings, again.scores) == (model.settings, model.scores)
    assert files_of(again) == files_of(model)


@pytest.mark.parametrize(
    ("modalities", "ids"),
    [
        (["flair", "t1ce"], ["flair", "t1ce"]),
        (["t1 post-contrast", "t1_post_contrast"], ["t1_post_contrast", "image_t1_post_contrast"]),
        (
            ["device", "config_file", "3d", "_x"],
            ["image_device", "image_config_file", "image_3d", "image__x"],
        ),
    ],
)
def test_each_modality_gets_an_option_of_its_own(modalities: list[str], ids: list[str]) -> None:
    assert list(modality_ids(modalities, taken=["device"]).values()) == ids


def test_a_modality_may_be_called_like_a_part_of_the_configuration(model: TrainedModel) -> None:
    other = with_header(model, modality=["network", "cases", "t1", "t2"])
    config = all_configs(other, inferer=INFERER)["inference.json"]
    assert input_ids(config)["network"] == "image_network"
    assert config["image_network"] == "network.nii.gz"
    assert config["network"]["_target_"] == "$@network_def.to"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"modality": ["flair", "$__import__('os')", "t1", "t2"]}, r"header\.modality\[1\]"),
        ({"modality": ["flair", "@device", "t1", "t2"]}, "@device"),
        ({"name": "%/etc/passwd"}, r"header\.name: not-plain"),
        ({"name": " $exit()"}, r"header\.name"),
        ({"name": "a @#b"}, "@#b"),
        ({"labels": {**LABELS, "a#b": 7}}, "the key 'a#b'"),
        ({"regions": {"_target_": ["oedema"]}}, "the key '_target_'"),
        ({"modality": ["flair", "classes", "t1", "t2"]}, "the name classes"),
    ],
)
def test_a_model_cannot_bring_code_into_its_bundle(
    model: TrainedModel, changes: dict[str, Any], text: str
) -> None:
    """MONAI executes `$...`, and reads files for `%...`: a checkpoint can come from anybody."""
    with pytest.raises(DataError, match=text):
        files_of(with_header(model, **changes))


def test_names_that_only_look_odd_are_kept(model: TrainedModel) -> None:
    files_of(with_header(model, name="BraTS #3, 50 % of it | me@example.org"))


def test_label_values_beyond_a_byte_are_written_wider(model: TrainedModel) -> None:
    def dtype(labels: dict[str, int]) -> str:
        config = all_configs(with_header(model, labels=labels), inferer=INFERER)["inference.json"]
        (saver,) = [
            step
            for step in config["postprocessing"]["transforms"]
            if step.get("output_postfix") == "seg"
        ]
        return saver["output_dtype"]

    assert dtype(LABELS) == "uint8"
    assert dtype({**LABELS, "enhancing_tumour": 300}) == "int32"


@pytest.mark.parametrize(
    ("loss", "weights"),
    [("cross_entropy", (0.0, 1.0)), ("dice", (1.0, 0.0)), ("dice_ce", (1.0, 1.0))],
)
def test_fine_tuning_has_the_loss_of_the_run(
    model: TrainedModel, loss: str, weights: tuple[float, float]
) -> None:
    training = {**model.settings["training"], "loss": loss}
    other = replace(model, settings={**model.settings, "training": training})
    found = all_configs(other, inferer=INFERER)["train.json"]["train"]["loss"]
    assert (found["lambda_dice"], found["lambda_ce"]) == weights


def test_metadata_are_what_the_schema_asks_for(model: TrainedModel) -> None:
    schema = json.loads((ROOT / "tests" / "monai_metadata_schema.json").read_text())
    jsonschema.Draft201909Validator.check_schema(schema)
    found = json.loads(json.dumps(metadata(model, smallest_multiple=1)))
    jsonschema.validate(found, schema)
    data_format = found["network_data_format"]
    assert data_format["inputs"]["image"]["spatial_shape"] == ["2*n"] * 3
    assert data_format["inputs"]["image"]["channel_def"]["2"] == "t1ce"
    assert data_format["outputs"]["pred"]["channel_def"]["3"] == "enhancing_tumour"
    assert found["eval_metrics"]["background_dice_WT"] == 0.0


def test_an_image_of_the_stated_sizes_is_taken(model: TrainedModel, tmp_path: Path) -> None:
    network = {"name": "UNet3D", "num_levels": 2, "num_filters": 2, "norm": "instance"}
    normalised = load_model(save_model(tmp_path, network=network))
    assert smallest_multiple_of(model) == 1
    # One voxel is left at the bottom, which has no variance to divide by.
    assert smallest_multiple_of(normalised) == 2
    size = metadata(normalised, smallest_multiple=2)["network_data_format"]["inputs"]["image"]
    assert size["spatial_shape"] == ["2*(n+1)"] * 3
    normalised.build()(torch.zeros(1, 4, 4, 4, 4))


def test_the_least_versions_are_those_of_the_project() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"].split()
    assert {f"{name}>={floor}" for name, floor in FLOORS.items()} <= set(required)


def test_a_transformer_needs_a_package_more(model: TrainedModel) -> None:
    other = replace(model, network={**model.network, "name": "SwinUNETR"})
    assert set(required_packages(other)) - set(required_packages(model)) == {"einops"}


def test_both_files_of_weights_have_every_tensor_of_a_network_that_shares_some() -> None:
    """DynUNet has each of its blocks under two names, which safetensors alone refuses."""
    network = build_network("DynUNet", in_channels=1, out_channels=2, filters=[4, 8, 16])
    weights = network.state_dict()
    stored = (
        torch.load(io.BytesIO(weights_bytes(weights)), weights_only=True),
        safetensors.torch.load(safetensors_bytes(weights)),
    )
    for tensors in stored:
        assert tensors.keys() == weights.keys()
        assert all(torch.equal(tensors[name], weights[name]) for name in weights)


def test_the_readme_says_what_is_known_and_that_the_rest_is_not(model: TrainedModel) -> None:
    text = files_of(model)["docs/README.md"].decode()
    assert "--flair flair.nii.gz --t1 t1.nii.gz --t1ce t1ce.nii.gz --t2 t2.nii.gz" in text
    assert "| enhancing_tumour | 4 |" in text
    assert "| WT | 0.700 | 0.000 |" in text
    assert "| mean | 0.500 | unknown |" in text
    assert "an unknown number of subjects" in text
    told = replace(model, trained_on=("a" * 16, "b" * 16), scores={})
    text = files_of(told)["docs/README.md"].decode()
    assert "2 subjects" in text
    assert "These weights were not validated" in text


def test_the_scores_of_an_ensemble_are_said_to_be_its_members(model: TrainedModel) -> None:
    inference = {**model.settings["inference"], "min_component_ml": 0.25}
    ensemble = replace(
        model,
        network={**model.network, "num_members": 3},
        settings={**model.settings, "inference": inference},
    )
    for document in (documents.model_card, readme):
        of_one, of_all = document(model), document(ensemble)
        assert "## Scores on validation cases" in of_one
        assert "| Dice | this network |" in of_one
        assert "out of fold" not in of_one
        assert "## Scores of its members, out of fold" in of_all
        assert "| Dice | its members |" in of_all
        assert "`min_component_ml` of 0.25, which" in of_all
        assert "min_et_volume_ml" not in of_all
        assert "validation cases" not in of_all
    assert "the mean of the probabilities of 3 networks" in readme(ensemble)
    assert "ensemble" not in readme(model)


def test_an_ensemble_without_thresholds_says_nothing_of_cleaning(model: TrainedModel) -> None:
    text = documents.model_card(replace(model, network={**model.network, "num_members": 2}))
    assert "out of fold" in text
    assert "cleaned" not in text


def readme(model: TrainedModel) -> str:
    return documents.readme(model, ids={name: name for name in MODALITIES}, models=["model.pt"])


def test_notes_are_a_section_of_the_model_card(model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_bytes(b"\xef\xbb\xbf\r\n### Data\r\n\r\nNineteen cases \xc2\xb7 CC BY\r\n\r\n")
    notes = documents.read_notes(path)
    assert notes == "### Data\n\nNineteen cases · CC BY"
    files = bundle_files(model, inferer=INFERER, notes=notes)
    text = files["README.md"].decode()
    assert f"\n\n## About this model\n\n{notes}\n\n## Scores" in text
    without = files_of(model)
    assert "About this model" not in without["README.md"].decode()
    changed = {name for name in files if files[name] != without[name]}
    assert changed == {"README.md", "SHA256SUMS"}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "No such file or directory"),
        ("folder", "a folder or a device"),
        (b"caf\xe9", "another encoding"),
        (b"\xc3\xa9" * 2**15 + b" ", "more"),
    ],
    ids=["missing", "folder", "latin-1", "large"],
)
def test_notes_that_cannot_be_read(tmp_path: Path, content: bytes | str | None, found: str) -> None:
    path = tmp_path / "notes.md"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    message = rf"--notes .*notes\.md: expected .* at most 65536 bytes; found {found}"
    with pytest.raises(SettingsError, match=message):
        documents.read_notes(path)


def test_notes_of_the_largest_size(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("a" * 2**16)
    assert len(documents.read_notes(tmp_path / "notes.md")) == 2**16


def test_names_cannot_break_the_tables(model: TrainedModel) -> None:
    text = files_of(with_header(model, name="a | <b>"))["docs/README.md"].decode()
    assert r"a \| \<b\>" in text


def test_the_model_card_has_plain_front_matter(model: TrainedModel) -> None:
    text = files_of(model)["README.md"].decode()
    front = text.split("---\n")[1]
    lines = [line for line in front.splitlines() if not line.startswith("- ")]
    assert lines == [
        "license: apache-2.0",
        "library_name: monai",
        "pipeline_tag: image-segmentation",
        "tags:",
    ]


def test_the_licence_is_the_projects(model: TrainedModel) -> None:
    assert files_of(model)["LICENSE"] == (ROOT / "LICENSE").read_bytes()


class Installed:
    """A distribution that keeps its licence where wheels do since PEP 639."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def read_text(self, name: str) -> str | None:
        return self.texts.get(name)


@pytest.mark.parametrize("name", ["licenses/LICENSE", "LICENSE"])
def test_the_licence_of_an_installed_package_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(documents, "distribution", lambda _: Installed({name: "Apache"}))
    assert documents.licence_text() == b"Apache"


def test_a_licence_that_another_package_left_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def not_installed(_: str) -> None:
        raise PackageNotFoundError

    (tmp_path / "LICENSE").write_text("of something else")
    monkeypatch.setattr(documents, "distribution", not_installed)
    monkeypatch.setattr(documents.pipeline, "__file__", str(tmp_path / "pipeline" / "__init__.py"))
    with pytest.raises(ResourceError, match=re.escape("LICENSE: not found in the installation")):
        documents.licence_text()
