"""The validation's scores, with a real evaluator around a network that answers by heart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor

from pipeline.signals import StopRequest
from pipeline.training.engines import build_evaluator
from pipeline.training.handlers import StopWatch
from pipeline.training.pictures import panel
from pipeline.training.scores import CaseScores

REGIONS = {"WT": (1, 2), "ET": (2,)}
NUM_CLASSES = 3
CPU = torch.device("cpu")
SHAPE = (4, 2, 3)


class Oracle(torch.nn.Module):
    """Answers with the classes that stand in the image's only channel, all but certainly."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert not isinstance(image, MetaTensor)
        return 100.0 * torch.nn.functional.one_hot(image[:, 0].long(), NUM_CLASSES).movedim(-1, 1)


def volume(*values: int) -> torch.Tensor:
    """Return (1, X, Y, Z), the values along X."""
    return torch.tensor(values).reshape(1, -1, 1, 1).expand(1, -1, *SHAPE[1:]).contiguous()


def make_case(name: str, prediction: torch.Tensor, label: torch.Tensor) -> dict[str, Any]:
    # On its own grid the case has one more slice along X, of class 2, which a crop removed.
    reference = torch.cat([label, torch.full_like(label[:, :1], 2)], dim=1)
    return {
        "image": MetaTensor(prediction.float()),
        "label": MetaTensor(label.to(torch.uint8)),
        "reference": MetaTensor(reference.to(torch.uint8)),
        "case": name,
    }


def to_own_grid(item: dict[str, Any]) -> dict[str, Any]:
    """Stand in for the postprocessing: the removed slice is background."""
    classes = item["pred"].argmax(dim=0, keepdim=True).to(torch.uint8)
    classes = torch.cat([classes, torch.zeros_like(classes[:, :1])], dim=1)
    return {**item, "classes": classes}


CASES = [
    make_case("good", prediction=volume(0, 1, 2, 2), label=volume(0, 1, 2, 2)),
    make_case("missed", prediction=volume(0, 0, 0, 0), label=volume(0, 0, 0, 1)),
]


def evaluate(
    scores: CaseScores,
    *,
    stop: StopRequest | None = None,
    cases: list[dict[str, Any]] = CASES,
    network: type[torch.nn.Module] = Oracle,
) -> Any:
    evaluator = build_evaluator(
        network(),
        loader=DataLoader(cases, batch_size=1),  # type: ignore[arg-type]  # a list serves as well
        postprocessing=to_own_grid,
        device=CPU,
        amp=True,  # without effect on the CPU
        window=None,
        divisor=1,
        handlers=[scores, *([StopWatch(stop)] if stop else [])],
    )
    evaluator.run()
    return evaluator


def make_scores(num_pictures: int = 0, **more: Any) -> CaseScores:
    return CaseScores(regions=REGIONS, num_classes=NUM_CLASSES, num_pictures=num_pictures, **more)


def test_region_dice_counts_on_the_own_grid_and_the_article_metrics_on_the_other() -> None:
    scores = make_scores()
    evaluate(scores)
    good = scores.cases["good"]
    # Three of the own grid's four tumour slices are found, two of three of class 2.
    assert good["dice_WT"] == 2 * 3 / (3 + 4)
    assert good["dice_ET"] == 2 * 2 / (2 + 3)
    assert good["dice_mean"] == (good["dice_WT"] + good["dice_ET"]) / 2
    # exp(-100) beside 1 is nothing in float32: on the network's grid all is right.
    assert good["article_dice"] == 1.0
    assert good["accuracy"] == 1.0
    assert scores.cases["missed"]["dice_WT"] == 0.0
    assert scores.cases["missed"]["accuracy"] == 0.75


def test_the_background_scores_stand_beside_each() -> None:
    scores = make_scores()
    evaluate(scores)
    for case in scores.cases.values():
        names = {name for name in case if not name.startswith("background_")}
        assert {f"background_{name}" for name in names} == set(case) - names
    missed = scores.cases["missed"]
    # The network's answer to this case is just that.
    assert all(missed[f"background_{name}"] == missed[name] for name in ("dice_mean", "mean_iou"))
    assert scores.cases["good"]["background_accuracy"] == 0.25


def test_the_means_are_over_all_cases() -> None:
    scores = make_scores()
    metrics = evaluate(scores).state.metrics
    assert list(metrics)[:3] == ["dice_mean", "dice_WT", "dice_ET"]
    for name, value in metrics.items():
        # Two numbers: their mean is exact up to the last bit.
        expected = (scores.cases["good"][name] + scores.cases["missed"][name]) / 2
        assert value == pytest.approx(expected, abs=1e-15)
        assert type(value) is float


def test_a_second_validation_forgets_the_first() -> None:
    scores = make_scores(num_pictures=2)
    evaluate(scores)
    metrics = evaluate(scores, cases=CASES[:1]).state.metrics
    assert list(scores.cases) == list(scores.pictures) == ["good"]
    assert metrics["accuracy"] == 1.0


def test_the_background_is_scored_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make_scores()
    first = evaluate(scores).state.metrics

    def again(*_: object, **__: object) -> None:
        raise AssertionError("the labels did not change")

    monkeypatch.setattr("pipeline.training.scores.background_scores", again)
    assert evaluate(scores).state.metrics == first


@pytest.mark.parametrize(("num_pictures", "names"), [(0, []), (1, ["good"])])
def test_so_many_pictures_are_kept(num_pictures: int, names: list[str]) -> None:
    scores = make_scores(num_pictures)
    evaluate(scores)
    assert list(scores.pictures) == names
    for picture in scores.pictures.values():
        assert picture.shape == (SHAPE[1], 3 * SHAPE[0], 3)
        assert picture.dtype == np.uint8


class Undecided(torch.nn.Module):
    """Says of every voxel that it is tumour, of an uncertain kind."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.tensor([0.4, 0.3, 0.3]).log()
        return logits.reshape(1, -1, 1, 1, 1).expand(-1, -1, *image.shape[2:])


@pytest.mark.parametrize(
    ("deciding_regions", "shown"), [(None, 0), ([[1, 2], [2]], 1)], ids=["classes", "regions"]
)
def test_a_picture_shows_the_classes_that_are_scored(
    deciding_regions: list[list[int]] | None, shown: int
) -> None:
    scores = make_scores(1, deciding_regions=deciding_regions)
    evaluate(scores, network=Undecided)
    image, truth = CASES[0]["image"][0].numpy(), CASES[0]["label"][0].numpy()
    # Outside the brain all is background, without asking the network.
    expected = panel(image, truth=truth, prediction=np.where(image == 0, 0, shown))
    np.testing.assert_array_equal(scores.pictures["good"], expected)


class StopAtCase(CaseScores):
    """Raises the signal's flag after so many cases."""

    def attach_stop(self, stop: StopRequest, after: int) -> None:
        self.stop, self.after = stop, after

    def _score_network_grid(self, engine: Any) -> None:
        super()._score_network_grid(engine)
        if engine.state.iteration == self.after:
            self.stop.signal_name = "SIGTERM"


def stopped(after: int) -> Any:
    scores = StopAtCase(regions=REGIONS, num_classes=NUM_CLASSES, num_pictures=0)
    stop = StopRequest()
    scores.attach_stop(stop, after)
    return evaluate(scores, stop=stop)


def test_a_signal_ends_the_validation_after_the_case() -> None:
    evaluator = stopped(after=1)
    assert evaluator.state.iteration == 1
    assert not evaluator.state.metrics


def test_a_signal_in_the_last_case_leaves_the_validation_whole() -> None:
    # The engine then never says that its epoch is completed.
    evaluator = stopped(after=2)
    assert evaluator.state.iteration == 2
    assert evaluator.state.metrics == evaluate(make_scores()).state.metrics
