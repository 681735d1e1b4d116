"""From logits back to the case's own grid, through every spatial step of the preprocessing."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose

from transforms.postprocessing import build_postprocessing, decided_classes
from transforms.preprocessing import build_preprocessing

# Anisotropic, with swapped and flipped axes, off the origin.
AFFINE = np.array(
    [[0.0, 0.0, 1.2, -31.0], [0.0, -0.9, 0.0, 12.5], [2.5, 0.0, 0.0, 40.0], [0.0, 0.0, 0.0, 1.0]]
)
SHAPE = (20, 50, 40)
CROP = [[3, 2], [4, 4], [1, 2]]
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "crop": {"border_crop": CROP},
    "box": {"brain_box": True},
    "padding": {"divisor": 16},
    "crop and box": {"border_crop": CROP, "brain_box": True},
    "crop, box and padding": {"border_crop": CROP, "brain_box": True, "divisor": 8},
}


def smooth_case() -> dict[str, Any]:
    """A brain with a smooth blob of nested classes, well inside the crop."""
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"))
    world = np.einsum("ij,jxyz->ixyz", AFFINE[:3, :3], voxels.astype(float))
    centre = AFFINE[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    distance_mm = np.sqrt(((world - centre[:, None, None, None]) ** 2).sum(axis=0))
    label = np.select([distance_mm < 6, distance_mm < 10, distance_mm < 14], [3, 1, 2], 0)
    rng = np.random.default_rng(0)
    brain = (distance_mm < 17) * (500 + 100 * rng.random(SHAPE))
    image = np.stack([brain, 2 * brain]).astype(np.float32)
    affine = torch.tensor(AFFINE)
    return {
        "image": MetaTensor(torch.from_numpy(image), affine=affine),
        "label": MetaTensor(torch.from_numpy(label[None].astype(np.uint8)), affine=affine),
        "case": "case_000",
    }


def logits_of(label: torch.Tensor, *, confidence: float = 20.0) -> torch.Tensor:
    """The network that is right everywhere: high logits (4, X, Y, Z) for the true class."""
    classes = torch.arange(4).reshape(4, 1, 1, 1)
    return confidence * (torch.as_tensor(label) == classes).float()


def predicted(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the case as loaded, and after preprocessing, a perfect network, postprocessing."""
    case = smooth_case()
    chain = build_preprocessing(**settings)
    data = chain(case)
    data["pred"] = logits_of(data["label"].as_tensor())
    return case, build_postprocessing(chain)(data)


def dice(found: torch.Tensor, truth: torch.Tensor) -> float:
    return (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_without_resampling_the_label_comes_back_exactly(settings: dict[str, Any]) -> None:
    case, result = predicted(settings)
    assert torch.equal(result["classes"].as_tensor(), case["label"].as_tensor())


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
def test_with_resampling_the_label_comes_back_nearly(spacing_mm: float) -> None:
    settings = {**SETTINGS["crop, box and padding"], "spacing_mm": spacing_mm}
    case, result = predicted(settings)
    truth, found = case["label"].as_tensor(), result["classes"].as_tensor()
    assert found.shape == truth.shape
    # The goal for 2 mm, on regions of 12 to 28 mm.
    for region in ((1, 2, 3), (1, 3), (3,)):
        wanted = torch.tensor(region)
        assert dice(torch.isin(found, wanted), torch.isin(truth, wanted)) > 0.9


@pytest.mark.parametrize("spacing_mm", [None, 2.0])
def test_result_lies_on_the_grid_that_was_loaded(spacing_mm: float | None) -> None:
    settings = {**SETTINGS["crop, box and padding"], "spacing_mm": spacing_mm}
    _, result = predicted(settings)
    assert isinstance(result["probabilities"], MetaTensor)
    assert isinstance(result["classes"], MetaTensor)
    assert result["probabilities"].shape == (4, *SHAPE)
    assert result["probabilities"].dtype == torch.float32
    assert result["classes"].shape == (1, *SHAPE)
    assert result["classes"].dtype == torch.uint8
    for key in ("probabilities", "classes"):
        # Products of a few float64 affines.
        np.testing.assert_allclose(result[key].affine, AFFINE, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spacing_mm", [None, 2.0])
def test_probabilities_sum_to_one_and_are_background_outside_the_crop(
    spacing_mm: float | None,
) -> None:
    case = smooth_case()
    chain = build_preprocessing(border_crop=CROP, spacing_mm=spacing_mm, divisor=8)
    data = chain(case)
    generator = torch.Generator().manual_seed(0)
    shape = (4, *data["image"].shape[1:])
    data["pred"] = 4 * torch.randn(shape, generator=generator)
    probabilities = build_postprocessing(chain)(data)["probabilities"].as_tensor()
    total = probabilities.sum(dim=0)
    # Four float32 numbers and their interpolation.
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    assert probabilities.min() >= 0
    # CROP is in LPS; the case is stored with X and Z swapped, and X flipped.
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[1:-2, 4:-4, 2:-3] = True
    assert (probabilities[0][~inside] == 1).all()
    assert not probabilities[1:, ~inside].any()
    assert (probabilities[1:, inside] > 0).all()


def test_softmax_is_taken_over_the_classes() -> None:
    chain = build_preprocessing(keys=("image",), normalization=None)
    image = MetaTensor(torch.zeros(1, 1, 1, 2), affine=torch.diag(torch.tensor([-1.0, -1, 1, 1])))
    data = chain({"image": image})
    odds = torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    data["pred"] = odds.log().reshape(2, 1, 1, 2)
    result = build_postprocessing(chain)(data)
    expected = torch.tensor([[0.25, 0.8], [0.75, 0.2]]).reshape(2, 1, 1, 2)
    # A logarithm and an exponential in float32.
    torch.testing.assert_close(result["probabilities"].as_tensor(), expected, rtol=0, atol=1e-6)
    assert result["classes"].flatten().tolist() == [1, 0]


def test_half_precision_logits_give_float32_probabilities() -> None:
    chain = build_preprocessing(border_crop=CROP)
    data = chain(smooth_case())
    data["pred"] = logits_of(data["label"].as_tensor()).half()
    result = build_postprocessing(chain)(data)
    assert result["probabilities"].dtype == torch.float32
    assert torch.equal(result["classes"].as_tensor(), smooth_case()["label"].as_tensor())


def test_keys_can_be_named() -> None:
    chain = build_preprocessing(keys=("scan",), border_crop=CROP)
    case = smooth_case()
    data = chain({"scan": case["image"]})
    data["logits"] = torch.zeros(4, *data["scan"].shape[1:])
    post = build_postprocessing(chain, prediction_key="logits", image_key="scan")
    assert post(data)["classes"].shape == (1, *SHAPE)


def test_a_chain_of_the_same_settings_inverts_a_sample_from_another_process() -> None:
    settings = {**SETTINGS["crop, box and padding"], "spacing_mm": 2.0}
    chain, other = build_preprocessing(**settings), build_preprocessing(**settings)
    data = chain(smooth_case())
    data["pred"] = logits_of(data["label"].as_tensor())
    expected = build_postprocessing(chain)(data)["probabilities"]
    travelled = pickle.loads(pickle.dumps(data))  # noqa: S301 - made one line above
    found = build_postprocessing(other)(travelled)["probabilities"]
    # The same arithmetic on arrays elsewhere in memory: rounding of float32.
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-6)


def test_a_decollated_batch_is_taken() -> None:
    settings = SETTINGS["crop, box and padding"]
    chain = build_preprocessing(**settings)
    loader = DataLoader(Dataset([smooth_case()], transform=chain), batch_size=1)
    batch = next(iter(loader))
    batch["pred"] = logits_of(batch["label"][0].as_tensor())[None]
    (data,) = decollate_batch(batch)
    result = build_postprocessing(chain)(data)
    assert torch.equal(result["classes"].as_tensor(), smooth_case()["label"].as_tensor())


def test_sample_is_not_changed() -> None:
    chain = build_preprocessing(border_crop=CROP, divisor=8)
    data = chain(smooth_case())
    data["pred"] = MetaTensor(logits_of(data["label"].as_tensor()))
    before = dict(data)
    trace = list(data["image"].applied_operations)
    logits, image = data["pred"].as_tensor().clone(), data["image"].as_tensor().clone()
    result = build_postprocessing(chain)(data)
    assert data.keys() == before.keys()
    assert all(data[key] is before[key] for key in before)
    assert torch.equal(data["pred"].as_tensor(), logits)
    assert torch.equal(data["image"].as_tensor(), image)
    assert data["image"].applied_operations == trace
    assert result["image"] is data["image"]
    assert result["case"] == "case_000"


def cause_of_failure(chain: Compose, data: dict[str, Any]) -> Exception:
    """Return what a step raised: MONAI's chains wrap it in a RuntimeError."""
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        build_postprocessing(chain)(data)
    assert isinstance(caught.value.__cause__, Exception)
    return caught.value.__cause__


def test_image_without_a_trace_is_refused() -> None:
    data = {"image": torch.zeros(1, 2, 2, 2), "pred": torch.zeros(4, 2, 2, 2)}
    cause = cause_of_failure(build_preprocessing(), data)
    with pytest.raises(ValueError, match=r"'image' must be a MetaTensor .*; found Tensor"):
        raise cause


def test_prediction_on_another_grid_is_refused() -> None:
    chain = build_preprocessing(border_crop=CROP)
    data = chain(smooth_case())
    data["pred"] = torch.zeros(4, 8, 8, 8)
    cause = cause_of_failure(chain, data)
    with pytest.raises(ValueError, match=r"'pred' must lie on the grid .*; found \(8, 8, 8\)"):
        raise cause


def test_a_class_is_the_most_probable_one_or_that_of_the_innermost_likely_region() -> None:
    """Tumour for certain, of an uncertain kind: the background is the most probable class."""
    voxel = torch.tensor([0.4, 0.2, 0.15, 0.25]).reshape(4, 1, 1, 1)
    regions = [[1, 2, 3], [1, 3], [3]]
    assert int(decided_classes(voxel)) == 0
    # WT 0.6, TC 0.45: tumour, but not its core.
    assert int(decided_classes(voxel, regions=regions)) == 2
    core = torch.tensor([0.1, 0.3, 0.2, 0.4]).reshape(4, 1, 1, 1)
    assert int(decided_classes(core)) == 3
    assert int(decided_classes(core, regions=regions)) == 1
    found = decided_classes(torch.tensor([0.0, 0.1, 0.0, 0.9]).reshape(4, 1, 1, 1), regions=regions)
    assert found.dtype == torch.uint8
    assert found.tolist() == [[[[3]]]]


def test_the_chain_decides_by_regions_where_it_is_told_to() -> None:
    preprocessing = build_preprocessing(keys=("image",), normalization=None, decimals=None)
    image = preprocessing({"image": MetaTensor(torch.ones(1, 2, 2, 2))})["image"]
    logits = torch.tensor([0.4, 0.2, 0.15, 0.25]).log()[:, None, None, None].expand(4, 2, 2, 2)
    classes = {}
    for regions in (None, [[1, 2, 3], [1, 3], [3]]):
        chain = build_postprocessing(preprocessing, regions=regions)
        classes[regions is None] = int(chain({"image": image, "pred": logits})["classes"].max())
    assert classes == {True: 0, False: 2}
