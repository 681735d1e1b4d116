"""A bundle is proven equal to its model; whatever differs keeps it from being one, and is named."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import AFFINE, make_cohort
from models import save_model
from monai.bundle import verify_metadata, verify_net_in_out
from monai.data import MetaTensor

from pipeline import export
from pipeline.bundle import contents
from pipeline.bundle.clean_environment import CleanEnvironment
from pipeline.bundle.contents import bundle_files, sums_of
from pipeline.bundle.conversion import converted, to_onnx
from pipeline.bundle.gate import verify_bundle
from pipeline.bundle.gate_files import check_sums
from pipeline.bundle.gate_run import (
    _compare_masks,
    _compare_probabilities,
    _logit_difference,
    _num_ties,
)
from pipeline.config import build_settings
from pipeline.data.datalist import read_datalist
from pipeline.data.loading import LoadCase
from pipeline.data.nifti import write_volume
from pipeline.errors import DataError
from pipeline.evaluation.overlap import region_dice
from pipeline.inference.predictor import Predictor
from pipeline.model.trained import TrainedModel, load_model
from transforms import classes_to_values

ROOT = Path(__file__).parents[1]
ORIGINAL = build_settings().model_dump(mode="json")["preprocessing"]
UNET = {"name": "UNet3D", "num_levels": 2, "num_filters": 2}
INFERER = {"window": None, "overlap": 0.5, "flips": False, "divisor": 2, "content_only": True}
TIME_LIMIT_S = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the article's preprocessing and a tiny network, all of whose classes occur."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return save_model(folder, network=UNET, preprocessing=ORIGINAL, seed=1)


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return load_model(run)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the bundle of the run, with everything, and what the verb printed."""
    bundle = tmp_path_factory.mktemp("bundles") / "bundle"
    printed = io.StringIO()
    options = ["--torchscript", "--onnx"]
    with contextlib.redirect_stdout(printed):
        assert export.main([str(run), "-o", str(bundle), *options]) == 0
    return bundle, printed.getvalue()


@pytest.fixture
def copy(exported: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the bundle to spoil."""
    return Path(shutil.copytree(exported[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    return CleanEnvironment(tmp_path_factory.mktemp("clean") / "environment")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled cases, large enough for the article's crop."""
    folder = tmp_path_factory.mktemp("cohort")
    return make_cohort(folder, num_cases=3, shape=(24, 26, 20))


def renew_sums(bundle: Path) -> None:
    """Make SHA256SUMS fit whatever is in the bundle."""
    paths = [path for path in bundle.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in paths}
    (bundle / "SHA256SUMS").write_bytes(sums_of(files))


@pytest.mark.slow
def test_every_class_is_compared_and_every_format(exported: tuple[Path, str]) -> None:
    """A mask that were background throughout would prove little."""
    _, printed = exported
    assert "all 332800 voxels of phantom are as the model has them (" in printed
    assert "(background, necrotic_core, oedema, enhancing_tumour)" in printed
    assert "models/model.ts: the same classes; 0 ties" in printed
    assert "models/model.onnx: the same classes; " in printed


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(
    exported: tuple[Path, str], model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchScript from a process of its own, since it would count the classes of this one."""

    def converted_here(formats: Sequence[str], **network: Any) -> dict[str, bytes]:
        assert formats == ["torchscript", "onnx"]
        onnx = to_onnx(network["network"], network["weights"])
        return {**converted(formats=["torchscript"], **network), "onnx": onnx}

    monkeypatch.setattr(contents, "converted", converted_here)
    again = bundle_files(model, inferer=INFERER, formats=["torchscript", "onnx"])
    names = [path.relative_to(exported[0]).as_posix() for path in exported[0].rglob("*.*")]
    assert set(again) - {"LICENSE", "SHA256SUMS"} == set(names)
    for name, content in again.items():
        assert (exported[0] / name).read_bytes() == content, name


def test_nothing_in_the_bundle_names_this_machine(exported: tuple[Path, str]) -> None:
    places = [str(ROOT), str(Path(torch.__file__).parents[1]), str(exported[0].parent)]
    for path in exported[0].rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(place.encode() in content for place in places), path.name


def test_monai_takes_the_metadata_and_the_network(
    exported: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = exported
    # A schema that is there already is not downloaded.
    schema = Path(shutil.copy(ROOT / "tests" / "monai_metadata_schema.json", tmp_path))
    metadata = str(bundle / "configs" / "metadata.json")
    digest = hashlib.sha256(schema.read_bytes()).hexdigest()
    verify_metadata(meta_file=metadata, filepath=schema, hash_val=digest, hash_type="sha256")
    monkeypatch.chdir(bundle)
    verify_net_in_out(
        net_id="network_def",
        meta_file=metadata,
        config_file="configs/inference.json",
        device="cpu",
    )


@pytest.mark.slow
def test_evaluation_in_monai_gives_our_scores(
    exported: tuple[Path, str],
    model: TrainedModel,
    cohort: Path,
    environment: CleanEnvironment,
    tmp_path: Path,
) -> None:
    printed = environment.run(
        [
            *("-m", "monai.bundle", "run", "--config_file", "configs/evaluate.json"),
            *("--cases", f"%{cohort}#training", "--dataset_dir", str(cohort.parent)),
            *("--output_dir", str(tmp_path), "--device", "cpu"),
        ],
        folder=exported[0],
        time_limit_s=TIME_LIMIT_S,
    )
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    found = {name: float(value) for name, value in csv.reader(lines)}
    expected = scores_of(model, cohort)
    assert found.keys() == expected.keys()
    # MONAI writes four decimals of some.
    assert found == pytest.approx(expected, abs=5e-5)
    assert f"dice_WT: {expected['dice_WT']:.4f}" in printed
    raw = csv.DictReader((tmp_path / "dice_mean_raw.csv").read_text().splitlines())
    assert [row["filename"] for row in raw] == ["case_000", "case_001", "case_002"]


def scores_of(model: TrainedModel, cohort: Path) -> dict[str, float]:
    """Return the mean Dice of each region by our own means."""
    predictor = Predictor([model], device=torch.device("cpu"))
    rows = []
    for case in read_datalist(cohort).training:
        classes = predictor.predict(LoadCase(labels=False)(case))["classes"].as_tensor()
        label = LoadCase(labels=True)(case)["label"].as_tensor()
        rows.append(region_dice(classes, label, regions=model.regions))
    means = {f"dice_{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"dice_mean": float(np.mean(list(means.values()))), **means}


@pytest.mark.slow
def test_training_goes_on_in_monai(
    exported: tuple[Path, str], cohort: Path, environment: CleanEnvironment, tmp_path: Path
) -> None:
    environment.run(
        [
            *("-m", "monai.bundle", "run", "--config_file", "configs/train.json"),
            *("--cases", f"%{cohort}#training", "--dataset_dir", str(cohort.parent)),
            *("--output_dir", str(tmp_path), "--device", "cpu", "--fold", "1", "--epochs", "1"),
        ],
        folder=exported[0],
        time_limit_s=TIME_LIMIT_S,
    )
    started = torch.load(exported[0] / "models" / "model.pt", weights_only=True)
    for name in ("best.pt", "last.pt"):
        weights = torch.load(tmp_path / name, weights_only=True)
        assert weights.keys() == started.keys()
        steps = [float((weights[key] - started[key]).abs().max()) for key in started]
        # Two steps of Adam from the bundle's weights: each moves a weight by the rate or less.
        assert 0 < max(steps) < 2.1e-3


REGIONS = {
    "name": "UNet3D",
    "num_levels": 3,
    "num_filters": 2,
    "norm": "instance",
    "residual": True,
    "deep_supervision": 1,
    "regions": [[1, 2, 3], [1, 3], [3]],
}


@pytest.mark.slow
@pytest.mark.parametrize("num_members", [1, 2], ids=["model", "ensemble"])
def test_region_outputs_in_every_format_and_in_training(
    num_members: int,
    cohort: Path,
    environment: CleanEnvironment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = {**REGIONS, "num_members": num_members}
    folder = save_model(tmp_path / "run", network=network, preprocessing=ORIGINAL, seed=7)
    bundle = tmp_path / "bundle"
    assert export.main([str(folder), "-o", str(bundle), "--torchscript", "--onnx"]) == 0
    printed = capsys.readouterr().out
    assert "(background, necrotic_core, oedema, enhancing_tumour)" in printed
    for name in ("models/model.ts", "models/model.onnx"):
        assert f"{name}: the same classes; " in printed
    environment.run(
        [
            *("-m", "monai.bundle", "run", "--config_file", "configs/train.json"),
            *("--cases", f"%{cohort}#training", "--dataset_dir", str(cohort.parent)),
            *("--output_dir", str(tmp_path), "--device", "cpu", "--fold", "1", "--epochs", "1"),
        ],
        folder=bundle,
        time_limit_s=TIME_LIMIT_S,
    )
    assert (tmp_path / "last.pt").is_file()


def spoil_tensor(bundle: Path) -> None:
    path = bundle / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)
    weights["output.weight"][0, 0] += 1e-3
    torch.save(weights, path)


def drop_tensor(bundle: Path) -> None:
    path = bundle / "models" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["output.bias"]
    safetensors.torch.save_file(weights, path)


def spoil_weights(bundle: Path) -> None:
    (bundle / "models" / "model.pt").write_bytes(b"nothing that torch reads")


def change(name: str, *place: str, value: Any) -> Callable[[Path], None]:
    """Return what sets one value in a configuration."""

    def spoil(bundle: Path) -> None:
        path = bundle / "configs" / name
        config = json.loads(path.read_text())
        node = config
        for key in place[:-1]:
            node = node[int(key) if key.isdecimal() else key]
        node[place[-1]] = value
        path.write_text(json.dumps(config))

    return spoil


def spoil_source(bundle: Path) -> None:
    path = bundle / "transforms" / "intensity.py"
    path.write_text(path.read_text().replace("truncate: float = 4.0", "truncate: float = 3.0"))


def add_source(bundle: Path) -> None:
    (bundle / "networks" / "more.py").write_text("")


SPOILS: list[tuple[Callable[[Path], None], str]] = [
    (spoil_tensor, r"models/model\.pt: gate-weights: .* in output\.weight\."),
    (drop_tensor, r"models/model\.safetensors: gate-weights: .* in output\.bias\."),
    (spoil_weights, r"models/model\.pt: gate-weights: expected tensors; found UnpicklingError"),
    (spoil_source, r"transforms/intensity\.py: gate-sources: "),
    (
        lambda bundle: (
            (bundle / "networks" / "more.py").write_text("")  # type: ignore[return-value]
            and None
        ),
        r"networks/more\.py: gate-sources: ",
    ),
    (
        change("inference.json", "network_preprocessing", "gaussian_sigma", value=2.0),
        r"inference\.json: gate-config: expected network_preprocessing#gaussian_sigma = 1\.0, "
        r"as in the checkpoint; found 2\.0",
    ),
    (
        change("evaluate.json", "network_def", "num_filters", value=4),
        r"evaluate\.json: gate-config: expected network_def#num_filters = 2, .* found 4",
    ),
    (
        change(
            "train.json", "train", "preprocessing", "transforms", "6", "values", value=[0, 1, 2, 3]
        ),
        r"train\.json: gate-config: expected train#preprocessing#transforms#6#values = \[0, 1",
    ),
    (
        change("inference.json", "network_def", "dropout", value=0.5),
        r"expected network_def#dropout = 'nothing', as in the checkpoint; found 0\.5",
    ),
    (
        change("inference.json", "inferer", "window", value=32),
        "expected inferer#window = None, as in the checkpoint; found 32",
    ),
    (
        change(
            "inference.json", "dataset", "data", "modalities", value=["t1", "flair", "t1ce", "t2"]
        ),
        r"expected dataset#data#modalities = \['flair', 't1', 't1ce', 't2'\]",
    ),
    (
        change("inference.json", "inferer", value={"_target_": "SimpleInferer"}),
        r"expected the components networks\.VolumeInferer; found nothing",
    ),
]


@pytest.mark.parametrize(("spoil", "text"), SPOILS)
def test_one_altered_byte_is_found_by_the_sums(
    copy: Path, model: TrainedModel, spoil: Callable[[Path], None], text: str
) -> None:
    spoil(copy)
    name = text.split(":")[0].replace("\\", "").rpartition("/")[2]
    file = name if name.endswith((".pt", ".safetensors", ".py", ".json")) else "inference.json"
    with pytest.raises(DataError, match=rf"{file}: gate-sums: expected the files and digests"):
        verify_bundle(copy, model, inferer=INFERER)


@pytest.mark.parametrize(("spoil", "text"), SPOILS)
def test_what_was_altered_is_named_even_with_new_sums(
    copy: Path, model: TrainedModel, spoil: Callable[[Path], None], text: str
) -> None:
    spoil(copy)
    renew_sums(copy)
    with pytest.raises(DataError, match=text):
        verify_bundle(copy, model, inferer=INFERER)


def test_a_bundle_without_sums_is_refused(copy: Path) -> None:
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match=r"LICENSE, README\.md, .* and \d+ more: gate-sums"):
        check_sums(copy)


def test_the_sums_are_those_of_sha256sum(exported: tuple[Path, str]) -> None:
    lines = (exported[0] / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((exported[0] / "LICENSE").read_bytes()).hexdigest()
    assert lines[0] == f"{digest}  LICENSE"


@pytest.mark.slow
def test_a_bundle_that_segments_otherwise_is_refused(copy: Path, model: TrainedModel) -> None:
    """Everything fits, but a step is off: only running it shows that."""
    steps = ("postprocessing", "transforms", "1")
    change("inference.json", *steps, "_disabled_", value=True)(copy)
    (copy / "models" / "model.ts").unlink()
    (copy / "models" / "model.onnx").unlink()
    renew_sums(copy)
    text = r"case_seg\.nii\.gz: gate-mask: .*; found \d+ of 332800 voxels differ, the first at \("
    with pytest.raises(DataError, match=text + r"\d+, \d+, \d+\): 4 expected, 3 found"):
        verify_bundle(copy, model, inferer=INFERER)


def reference() -> dict[str, MetaTensor]:
    """Probabilities (2, 2, 3, 4) and classes of a case."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand((1, 2, 3, 4), generator=generator)
    probabilities = torch.cat([first, 1 - first])
    classes = probabilities.argmax(dim=0, keepdim=True).to(torch.uint8)
    affine = torch.from_numpy(AFFINE)
    return {
        "probabilities": MetaTensor(probabilities, affine=affine),
        "classes": MetaTensor(classes, affine=affine),
    }


@pytest.mark.parametrize(
    ("shape", "shift_mm", "text"),
    [
        ((2, 3, 5), 0.0, r"gate-grid: expected \(2, 3, 4\); found \(2, 3, 5\)"),
        ((2, 3, 4), 0.01, "gate-grid: expected .*31.5.*; found .*31.51"),
    ],
)
def test_a_mask_on_another_grid_is_refused(
    tmp_path: Path, model: TrainedModel, shape: tuple[int, ...], shift_mm: float, text: str
) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += shift_mm
    path = tmp_path / "case_seg.nii.gz"
    write_volume(path, np.zeros(shape), affine=affine, dtype=np.uint8)
    with pytest.raises(DataError, match=text):
        _compare_masks(path, reference(), model)


def test_the_largest_difference_of_a_probability_is_measured_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "case_probabilities.nii.gz"
    volumes = reference()["probabilities"].numpy().copy()
    volumes[1, 0, 1, 2] += 5e-6
    write_volume(path, volumes, affine=AFFINE, dtype=np.float32)
    assert _compare_probabilities(path, reference()) == pytest.approx(5e-6, rel=0.1)
    volumes[1, 0, 1, 2] += 1e-4
    write_volume(path, volumes, affine=AFFINE, dtype=np.float32)
    with pytest.raises(DataError, match=r"gate-probabilities: .* a difference of 0\.000105"):
        _compare_probabilities(path, reference())


def test_another_runtime_may_only_round_otherwise() -> None:
    expected = torch.tensor([[30.0, -2.0], [0.0, 1.0]])
    assert _logit_difference("model.ts", expected + 0.02, expected) == pytest.approx(0.02, rel=1e-3)
    with pytest.raises(DataError, match=r"model\.ts: gate-format: .* to 0\.03; .* of 0\.04"):
        _logit_difference("model.ts", expected + 0.04, expected)


def test_another_runtime_may_only_break_ties() -> None:
    """A difference of 0.001 in a logit is one of 0.0005 at most in each of two probabilities."""
    expected = reference()
    expected["probabilities"][:, 0, 0, 0] = torch.tensor([0.5004, 0.4996])
    classes = expected["probabilities"].argmax(dim=0, keepdim=True).to(torch.uint8)
    expected["classes"] = classes
    other = classes.clone()
    assert _num_ties("model.onnx", other, expected, difference=1e-3) == 0
    other[0, 0, 0, 0] = 1
    assert _num_ties("model.onnx", other, expected, difference=1e-3) == 1
    with pytest.raises(DataError, match=r"model\.onnx: gate-format: .* 1 of 24 .* at \(0, 0, 0\)"):
        _num_ties("model.onnx", other, expected, difference=7e-4)


def test_the_environment_has_monai_and_not_this_project(
    exported: tuple[Path, str], environment: CleanEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    environment.require_clean(exported[0])
    script = "import importlib.util as u; print(u.find_spec('monai') is not None)"
    printed = environment.run(["-c", script], folder=exported[0], time_limit_s=TIME_LIMIT_S)
    assert printed.splitlines()[-1] == "True"


def test_an_environment_that_has_this_project_proves_nothing(
    environment: CleanEnvironment,
) -> None:
    """In the source tree as working directory, everything would be found there."""
    with pytest.raises(DataError, match=r"gate-environment: .*; found .*pipeline"):
        environment.require_clean(ROOT)


def test_an_installed_project_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a package, as an editable installation of either kind, and nothing else."""
    installed = tmp_path / "site-packages"
    ours = [
        "networks/",
        "pipeline/",
        "transforms/",
        "brain_tumour_segmentation-0.1.0.dist-info/",
        "__editable___brain_tumour_segmentation_0_1_0_finder.py",
        "easy-install.pth",
    ]
    for name in (*ours, "monai/", "matplotlib.pth"):
        path = installed / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("")
    (installed / "easy-install.pth").write_text(f"{ROOT}\n")
    monkeypatch.setattr("sys.path", [str(tmp_path), str(installed), str(installed)])
    CleanEnvironment(tmp_path / "environment")
    (own,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    assert sorted(path.name for path in own.iterdir()) == ["matplotlib.pth", "monai"]


@pytest.mark.parametrize(
    ("script", "limit_s", "text"),
    [
        ("print('why'); raise SystemExit(3)", TIME_LIMIT_S, r"found exit code 3; it printed:\nwhy"),
        ("import time; time.sleep(60)", 0.5, r"found nothing after 0\.5 s"),
    ],
)
def test_a_run_that_fails_shows_what_it_printed(
    environment: CleanEnvironment, tmp_path: Path, script: str, limit_s: float, text: str
) -> None:
    with pytest.raises(DataError, match=text):
        environment.run(["-c", script], folder=tmp_path, time_limit_s=limit_s)


def test_the_mask_compared_is_in_the_datasets_values(model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "case_seg.nii.gz"
    values = classes_to_values(reference()["classes"], values=model.label_values)[0].numpy()
    write_volume(path, values, affine=AFFINE, dtype=np.uint8)
    _compare_masks(path, reference(), model)


def test_another_runtime_may_only_move_a_region_across_a_half() -> None:
    regions = [[1, 2, 3], [1, 3], [3]]
    # WT 0.9, TC 0.5005, ET 0.1.
    voxel = torch.tensor([0.1, 0.4005, 0.3995, 0.1])[:, None, None, None]
    near = {"probabilities": voxel, "classes": torch.ones(1, 1, 1, 1, dtype=torch.uint8)}
    oedema = torch.full((1, 1, 1, 1), 2, dtype=torch.uint8)
    assert _num_ties("a", oedema, near, difference=2e-4, regions=regions) == 1
    with pytest.raises(DataError, match="1 of 1 voxels differ"):
        _num_ties("a", oedema, near, difference=1e-5, regions=regions)
