"""How far a run is: the best score, the patience, the table of epochs."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.training.progress import Progress


def validated(epoch: int, score: float) -> dict[str, float | int | None]:
    return {"epoch": epoch, "dice_mean": score}


def test_the_first_score_is_the_best() -> None:
    assert Progress().is_better(0.0)


@pytest.mark.parametrize(("score", "expected"), [(0.6, True), (0.5, False), (0.4, False)])
def test_only_a_higher_score_is_better(score: float, expected: bool) -> None:
    assert Progress(best_score=0.5).is_better(score) is expected


@pytest.mark.parametrize("best", [None, 0.0, 0.5])
def test_nan_is_never_better_also_as_the_first(best: float | None) -> None:
    assert not Progress(best_score=best).is_better(math.nan)


def test_closing_an_epoch_keeps_its_row_and_empties_the_sum() -> None:
    progress = Progress(iteration=4, epoch_loss_sum=2.5)
    row = validated(1, 0.5)
    progress.add_epoch(row)
    row["dice_mean"] = 0.9
    assert progress.history == [validated(1, 0.5)]
    assert progress.epoch_loss_sum == 0.0
    assert progress.num_epochs_done == 1


def test_only_validations_after_the_best_count() -> None:
    progress = Progress(best_score=0.5, best_epoch=2)
    for row in (
        validated(2, 0.5),
        {"epoch": 3},
        validated(4, 0.4),
        {"epoch": 5},
        validated(6, 0.5),
    ):
        progress.add_epoch(row)
    assert progress.validations_since_best() == 2


def test_validations_that_gave_no_number_use_up_the_patience() -> None:
    progress = Progress()
    for epoch in (1, 2):
        progress.add_epoch(validated(epoch, math.nan))
    assert progress.validations_since_best() == 2


def test_it_survives_its_plain_values() -> None:
    progress = Progress(iteration=7, epoch_loss_sum=0.1, best_score=0.3, best_epoch=1)
    progress.add_epoch(validated(1, 0.3))
    values = json.loads(json.dumps(progress.to_dict()))
    assert Progress.from_dict(values) == progress


def test_copies_do_not_share_their_history() -> None:
    progress = Progress()
    progress.add_epoch(validated(1, 0.3))
    values = progress.to_dict()
    copy = Progress.from_dict(values)
    copy.history[0]["epoch"] = 9
    values["history"][0]["epoch"] = 8
    assert progress.history == [validated(1, 0.3)]


def test_the_table_has_a_line_an_epoch_and_gaps_where_it_was_not_validated() -> None:
    progress = Progress()
    progress.add_epoch({"epoch": 1, "training_loss": 0.1})
    progress.add_epoch({"epoch": 2, "training_loss": 0.2, "dice_mean": 1 / 3})
    assert progress.as_csv() == (
        "epoch,training_loss,dice_mean\n1,0.1,\n2,0.2,0.3333333333333333\n"
    )
    assert Progress().as_csv() == ""
