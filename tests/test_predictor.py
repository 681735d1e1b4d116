"""From a case to its mask and back: every voxel of a known network's answer in its right place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import MODALITIES, save_nifti
from models import UNET, save_model
from monai.data import MetaTensor
from torch import nn

import networks
from pipeline.data.datalist import Case
from pipeline.data.loading import LoadCase
from pipeline.errors import DataError, SettingsError
from pipeline.inference import member, memory
from pipeline.inference.predictor import Predictor
from pipeline.model.trained import TrainedModel, load_model
from transforms import build_preprocessing

CPU = torch.device("cpu")
AXES = (("L", "R"), ("A", "P"), ("I", "S"))
ORIENTATIONS = ["".join(codes) for order in permutations(AXES) for codes in product(*order)]
SHAPE = (23, 17, 13)  # odd, and different along each axis
CROP = [[3, 2], [1, 4], [2, 1]]


class BandNetwork(nn.Module):
    """Says class k where the first modality, scaled to 0..1, is nearest to k / 3."""

    divisor = 4

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # A buffer: `save_model` makes every parameter random.
        levels = torch.arange(out_channels) / (out_channels - 1)
        self.register_buffer("levels", levels.reshape(1, -1, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return -100 * (image[:, :1] - self.levels).square()


@pytest.fixture
def bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainedModel]:
    """Return a maker of models whose network is `BandNetwork`."""
    monkeypatch.setitem(networks.NETWORKS, "Bands", BandNetwork)

    def make(**preprocessing: Any) -> TrainedModel:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        chain = {"decimals": None, **preprocessing}
        return load_model(save_model(folder, network={"name": "Bands"}, preprocessing=chain))

    return make


def reorient(volume: np.ndarray, affine: np.ndarray, codes: str) -> nib.Nifti1Image:
    """Return an LPS volume stored with its axes in another order and direction."""
    image = nib.Nifti1Image(volume, affine, dtype=volume.dtype)
    ours = nib.io_orientation(affine)
    return image.as_reoriented(
        nib.orientations.ornt_transform(ours, nib.orientations.axcodes2ornt(codes))
    )


def lps_affine(*, degrees: float = 0.0) -> np.ndarray:
    """Return an anisotropic, off-origin LPS affine, turned about two axes."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1.2, -0.9, 2.5])
    affine[:3, 3] = (31.5, -17.25, 208.0)
    return affine


def pattern(shape: tuple[int, ...] = SHAPE, *, seed: int = 0) -> np.ndarray:
    """Return a class for every voxel, drawn at random: a shift by one voxel cannot go unnoticed."""
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


def write_case(folder: Path, classes: np.ndarray, affine: np.ndarray) -> Case:
    """Write a case whose first modality holds 100 x class; the others are noise."""
    random = np.random.default_rng(1)
    images = []
    for modality in MODALITIES:
        values = classes.astype(np.int16) * 100
        if modality != "flair":
            values = random.integers(0, 500, classes.shape).astype(np.int16)
        images.append(save_nifti(folder / f"{modality}.nii.gz", values, affine))
    return Case("case", "case", tuple(images), None, None, (0, 1, 2, 4))


def classes_of(model: TrainedModel, case: Case, **options: Any) -> np.ndarray:
    """Return the classes by way of the probabilities, having compared them with the short way."""
    made = Predictor([model], device=CPU, **options)
    prepared = made.prepare(LoadCase(labels=False)(case))
    found, windows = made.predict_prepared(prepared)["classes"], made.windows
    short = made.classes_prepared(prepared)
    assert torch.equal(short.as_tensor(), found.as_tensor())
    assert short.dtype == torch.uint8
    np.testing.assert_array_equal(short.affine, found.affine)
    assert made.windows == windows
    return found[0].numpy()


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("degrees", [0.0, 25.0], ids=["straight", "oblique"])
def test_the_answer_lands_on_its_voxels_in_every_orientation(
    tmp_path: Path, bands: Callable[..., TrainedModel], codes: str, degrees: float
) -> None:
    expected = pattern()
    affine = lps_affine(degrees=degrees)
    inside = tuple(slice(start, -end) for start, end in CROP)
    cropped = np.zeros_like(expected)
    cropped[inside] = expected[inside]
    stored = reorient(expected, affine, codes)
    assert "".join(nib.aff2axcodes(stored.affine)) == codes
    case = write_case(tmp_path, np.asarray(stored.dataobj), stored.affine)
    item = LoadCase(labels=False)(case)
    found = Predictor([bands(border_crop=CROP)], device=CPU).predict(item)
    wanted = np.asarray(reorient(cropped, affine, codes).dataobj)
    np.testing.assert_array_equal(found["classes"][0].numpy(), wanted)
    np.testing.assert_array_equal(classes_of(bands(border_crop=CROP), case), wanted)
    # NIfTI keeps affines in float32: of an origin at 240 mm, 1e-5.
    np.testing.assert_allclose(found["classes"].affine, stored.affine, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(5, 3, 4), (8, 8, 8), (16, 16, 16), SHAPE, (41, 33, 37)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 16},
        {"window": (8, 16, 4), "overlap": 0.25},
        {"window": 12, "overlap": 0.6, "flips": True},
        {"flips": True},
        {"window": "auto"},
    ],
    ids=str,
)
def test_windows_and_mirrorings_leave_every_voxel_in_its_place(
    tmp_path: Path,
    bands: Callable[..., TrainedModel],
    shape: tuple[int, ...],
    options: dict[str, Any],
) -> None:
    expected = pattern(shape)
    case = write_case(tmp_path, expected, lps_affine(degrees=10))
    np.testing.assert_array_equal(classes_of(bands(), case, **options), expected)


def test_the_brain_box_goes_back_to_where_it_was(
    tmp_path: Path, bands: Callable[..., TrainedModel]
) -> None:
    expected = np.zeros(SHAPE, dtype=np.uint8)
    expected[5:16, 2:9, 4:9] = pattern((11, 7, 5))
    case = write_case(tmp_path, expected, lps_affine())
    for path in case.images[1:]:  # elsewhere there is nothing
        save_nifti(path, expected.astype(np.int16), lps_affine())
    np.testing.assert_array_equal(classes_of(bands(brain_box=True), case), expected)


def test_resampling_comes_back_to_within_half_a_voxel(
    tmp_path: Path, bands: Callable[..., TrainedModel]
) -> None:
    """A box whose faces lie between coarse voxels is found to within one fine voxel."""
    expected = np.zeros((24, 20, 16), dtype=np.uint8)
    expected[6:18, 5:15, 4:12] = 3
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    found = classes_of(bands(spacing_mm=2.0), write_case(tmp_path, expected, affine))
    core, shell = np.zeros_like(expected), np.zeros_like(expected)
    core[7:17, 6:14, 5:11] = 1
    shell[5:19, 4:16, 3:13] = 1
    assert np.all(found[core == 1] == 3)
    assert np.all(found[shell == 0] == 0)


def test_an_ensemble_of_one_is_the_model_and_of_two_their_mean(tmp_path: Path) -> None:
    case = write_case(tmp_path, pattern(), lps_affine())
    item = LoadCase(labels=False)(case)
    models = [load_model(save_model(tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    alone = [Predictor([model], device=CPU).predict(item)["probabilities"] for model in models]
    direct = alone_by_hand(models[0], item)
    np.testing.assert_array_equal(alone[0].numpy(), direct)
    assert not torch.equal(alone[0], alone[1])
    both = Predictor(models, device=CPU).predict(item)
    np.testing.assert_array_equal(both["probabilities"], (alone[0] + alone[1]) / 2)
    np.testing.assert_array_equal(both["classes"][0], both["probabilities"].argmax(dim=0))


def alone_by_hand(model: TrainedModel, item: dict[str, Any]) -> np.ndarray:
    """The network on the whole volume, without any of our inference code; no crop, padding 1."""
    chain = build_preprocessing(keys=("image",), **model.preprocessing)
    image = chain({"image": item["image"]})["image"].as_tensor()
    network = model.build().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    with torch.no_grad():
        batch = image[None].contiguous(memory_format=torch.channels_last_3d)
        probabilities = torch.softmax(network(batch)[0], dim=0)
    own_grid = (slice(None), *(slice(size) for size in SHAPE))
    inside = probabilities[own_grid].clone()
    inside[0] = 1 - inside[1:].sum(dim=0)
    return inside.numpy()


class TiedNetwork(nn.Module):
    """Says of every voxel that two classes or more are equally likely, or nearly so."""

    divisor = 4

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        waves = torch.arange(1.0, out_channels + 1).reshape(1, -1, 1, 1, 1)
        self.register_buffer("waves", waves)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        levels, fractions = (
            (number * torch.cos(speed * image[:, 1:2] * self.waves)).round()
            for number, speed in ((2, 7), (10, 31))
        )
        return levels + 1e-7 * fractions


@pytest.mark.parametrize("chain", [{}, {"border_crop": CROP}, {"brain_box": True}], ids=str)
def test_where_nothing_but_rounding_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: dict[str, Any]
) -> None:
    monkeypatch.setitem(networks.NETWORKS, "Tied", TiedNetwork)
    model = load_model(save_model(tmp_path / "run", network={"name": "Tied"}, preprocessing=chain))
    case = write_case(tmp_path, pattern(), lps_affine(degrees=10))
    assert len(np.unique(classes_of(model, case))) > 2


@pytest.mark.parametrize(
    ("chain", "options", "is_direct"),
    [
        ({}, {}, True),
        ({"brain_box": True, "normalization": "zscore"}, {"window": 8}, True),
        ({"spacing_mm": 1.5}, {}, False),
        ({}, {"flips": True}, False),
    ],
    ids=str,
)
def test_probabilities_are_left_out_where_nothing_needs_them(
    tmp_path: Path,
    bands: Callable[..., TrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    chain: dict[str, Any],
    options: dict[str, Any],
    is_direct: bool,
) -> None:
    made = Predictor([bands(**chain)], device=CPU, **options)
    prepared = made.prepare(LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine())))
    seen: list[object] = []
    (only,) = made.members
    done = only.postprocessing
    only.postprocessing = lambda item: seen.append(item) or done(item)
    made.classes_prepared(prepared)
    assert bool(seen) is not is_direct


def test_classes_of_an_ensemble(tmp_path: Path) -> None:
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    models = [load_model(save_model(tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    made = Predictor(models, device=CPU)
    prepared = made.prepare(item)
    expected = made.predict_prepared(prepared)["classes"]
    assert torch.equal(made.classes_prepared(prepared).as_tensor(), expected.as_tensor())
    assert made.windows == [None, None]


def test_a_case_that_is_read_ahead_is_counted(
    tmp_path: Path, bands: Callable[..., TrainedModel]
) -> None:
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    alone, ahead = (Predictor([bands()], device=CPU, reads_ahead=ahead) for ahead in (False, True))
    image = alone.prepare(item)[0]["image"]
    difference = ahead.members[0].bytes_beside(image) - alone.members[0].bytes_beside(image)
    assert difference == 3 * 4 * np.prod(SHAPE) * 4  # three volumes of four float32 modalities


def test_it_says_which_windows_it_took(
    tmp_path: Path, bands: Callable[..., TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    windows = (
        *((None, None), (8, (8, 8, 8)), ((4, 8, 12), (4, 8, 12))),
        # Rounded up to the divisor; and no larger than the volume is with its padding.
        *((5, (8, 8, 8)), ((1, 6, 500), (4, 8, 16)), (500, (24, 20, 16))),
    )
    for window, expected in windows:
        made = Predictor([bands()], device=CPU, window=window)
        made.predict(item)
        assert made.windows == [expected]
    asked: list[dict[str, Any]] = []

    def choose(network: nn.Module, **facts: Any) -> tuple[int, int, int]:
        asked.append(facts)
        return (8, 8, 4)

    monkeypatch.setattr(member, "choose_window", choose)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 12000)
    monkeypatch.setattr(memory, "kept_bytes", lambda: 345)
    made = Predictor([bands()], device=CPU, window="auto")
    made.predict(item)
    assert made.windows == [(8, 8, 4)]
    beside = 3 * 4 * np.prod(SHAPE) * 4  # three volumes of four float32 maps on the own grid
    assert asked == [
        {"image_shape": (1, 4, 24, 20, 16), "divisor": 4, "free_bytes": 12345 - beside}
    ]


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"window": (8, 8)}, {"window": 8, "overlap": 1.0}]
)
def test_windows_that_cannot_be(
    bands: Callable[..., TrainedModel], options: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match=r"window must be|overlap must be"):
        Predictor([bands()], device=CPU, **options)


# What leaves a single voxel at the coarsest level, and which networks mind it.
ONE_VOXEL: list[tuple[dict[str, Any], bool]] = [
    ({**UNET, "norm": "instance"}, True),
    ({**UNET, "norm": "instance", "num_members": 2}, True),
    (UNET, False),
    ({"name": "DynUNet", "filters": [2, 2, 2]}, True),
    ({"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, False),
]


@pytest.mark.parametrize(("network", "minds"), ONE_VOXEL, ids=str)
def test_windows_of_one_voxel_at_the_coarsest_level(
    tmp_path: Path, network: dict[str, Any], minds: bool
) -> None:
    model = load_model(save_model(tmp_path / "run", network=network))
    built, divisor = model.build(), model.preprocessing["divisor"]
    smallest = torch.zeros(1, 4, divisor, divisor, divisor)
    if not minds:
        assert built(smallest).shape[2:] == smallest.shape[2:]
        Predictor([model], device=CPU, window=divisor)
        return
    with pytest.raises(ValueError, match="xpected more than 1 "):
        built(smallest)
    with pytest.raises(SettingsError, match=f"Choose more than {divisor} voxels along an axis"):
        Predictor([model], device=CPU, window=1)  # rounded up
    made = Predictor([model], device=CPU, window=(1, 1, divisor + 1))
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    assert made.predict(item)["classes"].shape == (1, *SHAPE)


@pytest.mark.parametrize(
    ("shape", "window", "remedy"),
    [
        ((2, 1, 2), "auto", "a broken skull strip"),
        ((2, 1, 2), None, "a broken skull strip"),
        ((2, 1, 2), (4, 4, 4), "a broken skull strip"),
        ((8, 8, 2), (2, 2, 8), "Choose a larger --window"),
    ],
)
def test_a_case_of_one_voxel_at_the_coarsest_level(
    tmp_path: Path, shape: tuple[int, int, int], window: Any, remedy: str
) -> None:
    model = load_model(save_model(tmp_path / "run", network={**UNET, "norm": "instance"}))
    made = Predictor([model], device=CPU, window=window)
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(shape), lps_affine()))
    with pytest.raises(DataError, match=rf"case: too-small: .*found 2 x 2 x 2 .*{remedy}"):
        made.prepare(item)


def test_a_case_that_the_preprocessing_does_not_fit(
    tmp_path: Path, bands: Callable[..., TrainedModel]
) -> None:
    case = write_case(tmp_path, pattern((4, 4, 4)), lps_affine())
    with pytest.raises(DataError, match=r"case: preprocessing: .*leave nothing of a volume"):
        classes_of(bands(border_crop=CROP), case)


def test_a_case_that_does_not_fit_the_gpu_is_prepared_on_the_cpu(
    tmp_path: Path, bands: Callable[..., TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: there need not be a GPU where this runs."""
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    (only,) = Predictor([bands(border_crop=CROP)], device=CPU).members
    expected = only.prepare(item)["image"]
    gpu, asked, really_to = torch.device("cuda", 0), [], MetaTensor.to

    def to(self: MetaTensor, *args: Any, **options: Any) -> torch.Tensor:
        if args == (gpu,):
            asked.append(self.shape)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really_to(self, *args, **options)

    only.device = gpu
    monkeypatch.setattr(MetaTensor, "to", to, raising=False)
    found = only.prepare(item)["image"]
    assert asked == [item["image"].shape]
    assert torch.equal(found.as_tensor(), expected.as_tensor())


def test_an_error_of_ours_is_not_taken_for_one_of_the_case(
    tmp_path: Path, bands: Callable[..., TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = write_case(tmp_path, pattern(), lps_affine())
    made = Predictor([bands()], device=CPU)

    def fail(*_: object, **__: object) -> MetaTensor:
        raise TypeError("a bug")

    monkeypatch.setattr("transforms.preprocessing.MinMaxNormalized.__call__", fail)
    with pytest.raises(RuntimeError, match="applying transform"):
        made.predict(LoadCase(labels=False)(case))


def test_samples_drop_differently_and_repeatably(tmp_path: Path) -> None:
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    models = [load_model(save_model(tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    made = Predictor(models, device=CPU)
    first = [sample.numpy() for sample in made.samples(made.prepare(item), num_samples=2, seed=3)]
    again = [sample.numpy() for sample in made.samples(made.prepare(item), num_samples=2, seed=3)]
    assert len(first) == 4
    for sample, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(sample, same)
    for index in range(4):
        for other in range(index):
            assert not np.array_equal(first[index], first[other])
    other_seed = next(made.samples(made.prepare(item), num_samples=2, seed=4)).numpy()
    assert not np.array_equal(first[0], other_seed)


@pytest.mark.parametrize("amp", [True, False])
def test_half_precision_on_a_gpu_unless_told_otherwise(
    tmp_path: Path,
    bands: Callable[..., TrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    amp: bool,
) -> None:
    """On the CPU, told to do what it does on a GPU."""
    precision = {True: torch.bfloat16, False: None}
    monkeypatch.setattr(member, "half_precision", lambda device, *, amp: precision[amp])
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    made = Predictor([bands()], device=CPU, amp=amp)
    found: list[bool] = []
    made.members[0].network.register_forward_hook(
        lambda *_: found.append(torch.is_autocast_enabled("cpu"))
    )
    assert made.predict(item)["probabilities"].dtype == torch.float32
    assert found[-1] is amp  # before, what it takes was found out


def test_samples_need_dropout(tmp_path: Path) -> None:
    item = LoadCase(labels=False)(write_case(tmp_path, pattern(), lps_affine()))
    model = load_model(save_model(tmp_path / "run", network={**UNET, "dropout": 0.0}))
    made = Predictor([model], device=CPU)
    with pytest.raises(SettingsError, match="dropout"):
        made.require_dropout()
    with pytest.raises(SettingsError, match="dropout"):
        next(made.samples(made.prepare(item), num_samples=2, seed=0))
