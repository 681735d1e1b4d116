"""In every form, and from every place, a case is what the whole chain makes of it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CaseFactory
from monai.data import MetaTensor
from monai.transforms import Compose, CopyItemsd

from networks import build_network
from pipeline.config import PreprocessingSettings
from pipeline.data import loading
from pipeline.data.caching import item_bytes
from pipeline.data.datalist import Case
from pipeline.data.forms import FORMS, FormName, Measured, Preparation
from pipeline.data.loaders import training_loader
from pipeline.data.loading import LoadCase
from transforms import build_augmentation, build_postprocessing, build_preprocessing

CROP = ((1, 1), (1, 1), (1, 1))
SETTINGS: dict[str, dict[str, Any]] = {
    "the article": {"border_crop": CROP},
    "coarse": {
        "border_crop": None,
        "brain_box": True,
        "normalization": "zscore",
        "sharpen_strength": None,
        "spacing_mm": 4.0,
    },
    "z-score": {"border_crop": CROP, "normalization": "zscore"},
    "not rounded": {"border_crop": CROP, "decimals": None},
    "nothing": {
        "border_crop": None,
        "normalization": None,
        "gaussian_sigma": None,
        "sharpen_strength": None,
    },
}


def settings_of(name: str) -> dict[str, Any]:
    given = PreprocessingSettings(**SETTINGS[name]).model_dump()
    return {**given, "divisor": 4}


def whole_chain(settings: Mapping[str, Any]) -> Compose:
    return Compose(
        [
            LoadCase(labels=True),
            CopyItemsd("label", names="reference"),
            *build_preprocessing(**settings).transforms,
        ]
    )


def assert_same(item: dict[str, Any], expected: dict[str, Any], *, reference: bool) -> None:
    keys = {"image", "label", "case"} | ({"reference"} if reference else set())
    assert item.keys() == keys
    assert item["case"] == expected["case"]
    for key in keys - {"case"}:
        left, right = item[key], expected[key]
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert left.as_tensor().numpy().tobytes() == right.as_tensor().numpy().tobytes()
        assert torch.equal(left.affine, right.affine)


def assert_same_way_back(
    item: Mapping[str, Any], expected: Mapping[str, Any], settings: Any
) -> None:
    """The validation takes predictions back to the case's own grid by the image's trace."""
    postprocessing = build_postprocessing(build_preprocessing(**settings))
    results = []
    for image in (item["image"], expected["image"]):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn((4, *image.shape[1:]), generator=generator)
        prediction = MetaTensor(logits, meta=image.meta)
        results.append(postprocessing({"pred": prediction, "image": image})["probabilities"])
    assert torch.equal(results[0].as_tensor(), results[1].as_tensor())
    assert torch.equal(results[0].affine, results[1].affine)


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_form_gives_what_the_whole_chain_gives(
    case_factory: CaseFactory, tmp_path: Path, name: str, on_disk: bool, reference: bool
) -> None:
    case, settings = case_factory(), settings_of(name)
    expected = whole_chain(settings)(case)
    for _ in range(1 + on_disk):  # the second one finds the file
        preparation = Preparation(settings, mask_nonfinite=False)
        first = preparation.measure(case)
        assert first.shape == tuple(expected["image"].shape)
        if on_disk:
            preparation.use_disk(tmp_path / "cache")
        assert_same(preparation.ready(case, reference=reference), expected, reference=reference)
        for form_name in FORMS:
            form = preparation.form(form_name, reference=reference)
            kept = form.keep(case)
            for _ in range(2):
                item = form.read(kept)
                assert_same(item, expected, reference=reference)
            assert_same_way_back(item, expected, settings)
            if reference:
                # A file also states its own name, a SHA-256.
                name_bytes = 64 if on_disk and form_name == "packed" else 0
                assert item_bytes(kept) == first.bytes_per_case[form_name] + name_bytes


@pytest.mark.parametrize("name", ["whole", "ready"])
def test_a_case_is_read_onto_the_device_that_augments_it(
    case_factory: CaseFactory, name: FormName
) -> None:
    case, settings = case_factory(), settings_of("the article")
    preparation = Preparation(settings, mask_nonfinite=False)
    form = preparation.form(name, reference=False, device=torch.device("meta"))
    item = form.read(form.keep(case))
    assert {value.device.type for value in item.values() if isinstance(value, torch.Tensor)} == {
        "meta"
    }


def test_training_does_not_write_into_what_is_kept(case_factory: CaseFactory) -> None:
    case, settings = case_factory(), settings_of("the article")
    form = Preparation(settings, mask_nonfinite=False).form("whole", reference=False)
    kept = form.keep(case)
    before = {key: kept[key].as_tensor().clone() for key in ("image", "label")}
    augmentation = build_augmentation(
        rotation_probability=0.5, intensity_scale=0.1, intensity_shift=0.1
    )
    loader, _ = training_loader(
        [form.read(kept)] * 16, augmentation=augmentation, seed=0, batch_size=1, num_workers=0
    )
    network = build_network("UNet3D", in_channels=4, out_channels=4, num_filters=2, num_levels=2)
    for batch in loader:
        network(batch["image"]).sum().backward()
    assert all(torch.equal(kept[key].as_tensor(), value) for key, value in before.items())


def test_the_first_part_ends_where_a_case_takes_less(case_factory: CaseFactory) -> None:
    case = case_factory(shape=(40, 40, 30))
    article = Preparation(settings_of("the article"), mask_nonfinite=False)
    sizes = article.measure(case).bytes_per_case
    assert sizes["packed"] < sizes["compact"] < sizes["ready"] < sizes["whole"]
    assert article.each_time.transforms, "filters turn levels into numbers of four bytes"
    coarse = Preparation(settings_of("coarse"), mask_nonfinite=False)
    sizes = coarse.measure(case).bytes_per_case
    assert sizes["compact"] == sizes["ready"]
    assert not coarse.each_time.transforms, "fewer voxels are less than the brain's own"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        *[(3600, "whole"), (3599, "ready"), (1200, "ready"), (1199, "compact")],
        *[(480, "compact"), (479, "packed"), (0, "packed")],
    ],
)
def test_the_quickest_form_in_which_all_cases_fit(budget: float, expected: FormName) -> None:
    sizes: dict[FormName, int] = {"whole": 300, "ready": 100, "compact": 40, "packed": 10}
    measured = Measured((1, 2, 2, 2), sizes)
    assert measured.form(num_cases=10, budget_bytes=budget) == expected


def test_files_are_read_once_for_all_runs(
    case_factory: CaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, other = case_factory("a"), case_factory("b")
    loaded: list[str] = []
    original = LoadCase.__call__

    def load(self: LoadCase, case: Case) -> Any:
        loaded.append(case.id)
        return original(self, case)

    monkeypatch.setattr(loading.LoadCase, "__call__", load)
    for _ in range(2):
        preparation = Preparation(settings_of("the article"), mask_nonfinite=False)
        preparation.measure(other)
        preparation.use_disk(tmp_path / "cache")
        for reference in (True, False):  # the folds may change
            preparation.ready(case, reference=reference)
            preparation.form("packed", reference=reference).keep(case)
    assert loaded == ["b", "a", "b"]


def test_masked_voxels_make_other_files(case_factory: CaseFactory, tmp_path: Path) -> None:
    case, paths = case_factory(), set()
    for mask_nonfinite in (True, False):
        preparation = Preparation(settings_of("the article"), mask_nonfinite=mask_nonfinite)
        paths.add(preparation.use_disk(tmp_path / "cache").path(case))
    assert len(paths) == 2


def test_forms_can_be_sent_to_workers_that_are_not_forked(case_factory: CaseFactory) -> None:
    case, settings = case_factory(), settings_of("the article")
    preparation = Preparation(settings, mask_nonfinite=False)
    expected = whole_chain(settings)(case)
    for name in FORMS:
        form = preparation.form(name, reference=False)
        kept, read = pickle.loads(pickle.dumps((form.keep(case), form.read)))  # noqa: S301 - ours
        assert_same(read(kept), expected, reference=False)
