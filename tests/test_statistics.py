"""Summaries, intervals, empty-region rules and paired tests, by hand and against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation import statistics
from pipeline.evaluation.statistics import (
    RuleMean,
    Summary,
    bootstrap_interval,
    compare,
    means_by_rule,
    signed_rank_p,
    summarise,
)

# The last bits of a quotient in float64.
FLOAT64 = 1e-12


def scores(num_cases: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(5, 2, num_cases)


# ---- Summaries ----------------------------------------------------------------------------------


def test_a_summary_by_hand() -> None:
    summary = summarise([0.0, 1.0, None, 0.5, 0.5], seed=0)
    assert (summary.num_cases, summary.mean, summary.median) == (4, 0.5, 0.5)
    assert (summary.minimum, summary.maximum) == (0.0, 1.0)
    # Squared distances 1/4 + 1/4 + 0 + 0, over n - 1 = 3.
    assert summary.standard_deviation == pytest.approx((0.5 / 3) ** 0.5, abs=FLOAT64)


def test_one_case_has_neither_deviation_nor_interval() -> None:
    assert summarise([None, 0.25], seed=0) == Summary(1, 0.25, 0.25, None, 0.25, 0.25, None)


def test_no_value_has_no_summary() -> None:
    assert summarise([None, None], seed=0) == Summary(0, None, None, None, None, None, None)


# ---- The bootstrap ------------------------------------------------------------------------------


def test_the_interval_of_two_cases_spans_them() -> None:
    # Of (0, 0), (0, 1), (1, 0), (1, 1) each comes in a quarter of the samples: more than 2.5 %.
    assert bootstrap_interval([0.0, 1.0], seed=0) == (0.0, 1.0)


def test_the_interval_covers_the_middle_95_percent_of_all_samples() -> None:
    values = [0.1, 0.2, 0.6, 0.9]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    # 10,000 draws of 256 equally likely samples: each end may fall on a neighbouring mean.
    assert bootstrap_interval(values, seed=0) == pytest.approx(
        tuple(np.percentile(means, [2.5, 97.5])), abs=0.03
    )


def test_the_interval_is_scipy_s() -> None:
    values = scores(30)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    # Two runs of 10,000 samples: each end's own error is about 2 % of the interval's width.
    width = theirs.high - theirs.low
    assert bootstrap_interval(values, seed=0) == pytest.approx(tuple(theirs), abs=0.05 * width)


def test_the_seed_fixes_the_interval() -> None:
    values = scores(9)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large cohort is resampled in parts, which must draw as one part would."""
    values = scores(7)
    whole = bootstrap_interval(values, seed=0)
    monkeypatch.setattr(statistics, "BATCH_VALUES", 7 * 999)
    assert bootstrap_interval(values, seed=0) == whole


def test_fewer_than_two_cases_have_no_interval() -> None:
    assert bootstrap_interval([0.5], seed=0) is None


# ---- Empty regions ------------------------------------------------------------------------------


def test_the_three_rules_by_hand() -> None:
    # Empty and predicted as empty (1), empty with a false region (0), two tumours.
    means = means_by_rule(
        [1.0, 0.0, 0.8, 0.6], reference_is_empty=[True, True, False, False], worst=0.0
    )
    assert means == {
        "stated": RuleMean(pytest.approx(0.6, abs=FLOAT64), 4),
        "skip": RuleMean(pytest.approx(0.7, abs=FLOAT64), 2),
        "worst_case": RuleMean(pytest.approx(0.35, abs=FLOAT64), 4),
    }


def test_a_missed_tumour_counts_under_every_rule() -> None:
    means = means_by_rule([373.13, 0.0], reference_is_empty=[False, True], worst=373.13)
    assert [mean.mean for mean in means.values()] == [373.13 / 2, 373.13, 373.13]


def test_skipping_every_case_leaves_no_mean() -> None:
    means = means_by_rule([1.0], reference_is_empty=[True], worst=0.0)
    assert means["skip"] == RuleMean(None, 0)


# ---- Comparisons --------------------------------------------------------------------------------


def naive_signed_rank_p(differences: list[float]) -> float:
    """Go through all signs of the ranks: how often is their sum as far from its middle?"""
    ranks = stats.rankdata(np.abs(differences))
    found = abs(sum(rank if d > 0 else -rank for rank, d in zip(ranks, differences, strict=True)))
    signs = itertools.product((-1, 1), repeat=len(ranks))
    sums = [abs(np.dot(sign, ranks)) for sign in signs]
    return float(np.mean([total >= found - FLOAT64 for total in sums]))


@pytest.mark.parametrize(
    "differences",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],  # all one way: 2 / 2^6
        [0.3, -0.1, 0.2, 0.7, 0.5, -0.4, 0.6],
        [1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -2.0],  # ties share their mean rank
    ],
)
def test_p_is_the_share_of_signs_that_are_as_extreme(differences: list[float]) -> None:
    expected = naive_signed_rank_p(differences)
    assert signed_rank_p(np.array(differences)) == pytest.approx(expected, abs=FLOAT64)


def test_zeros_do_not_enter_the_test() -> None:
    differences = np.array([0.0, 1.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0])
    assert signed_rank_p(differences) == 2 / 2**6


def test_p_is_1_where_nothing_differs() -> None:
    assert signed_rank_p(np.zeros(4)) == 1.0


def test_a_comparison_by_hand() -> None:
    result = compare([0.9, 0.5, 0.7, 0.7], [0.5, 0.6, 0.7, 0.4], higher_is_better=True, seed=0)
    assert (result.num_better, result.num_worse, result.num_equal) == (2, 1, 1)
    assert result.mean == pytest.approx(0.7, abs=FLOAT64)
    assert result.other_mean == pytest.approx(0.55, abs=FLOAT64)
    assert result.mean_difference == pytest.approx(0.15, abs=FLOAT64)
    # 0.4, -0.1, 0.3: the ranks of the signs +3, -1, +2 sum to 4 or more in half of the 8 ways.
    assert result.p_value == pytest.approx(0.5, abs=FLOAT64)
    assert result.interval_95 is not None
    assert result.interval_95[0] < result.mean_difference < result.interval_95[1]


def test_a_shorter_distance_is_better() -> None:
    result = compare([1.0, 2.0, 9.0], [3.0, 3.0, 3.0], higher_is_better=False, seed=0)
    assert (result.num_better, result.num_worse, result.mean_difference) == (2, 1, 1.0)


def test_pairs_are_resampled_together() -> None:
    """Cases differ much from each other, the sets by a constant: that is known exactly."""
    values = [0.125, 0.5, 0.875]
    others = [value - 0.125 for value in values]
    assert compare(values, others, higher_is_better=True, seed=0).interval_95 == (0.125, 0.125)


def test_rounding_does_not_break_a_tie() -> None:
    result = compare([0.1 + 0.2], [0.3], higher_is_better=True, seed=0)
    assert (result.num_equal, result.p_value) == (1, 1.0)


@pytest.mark.parametrize(("num_different", "expected"), [(5, False), (6, True)])
def test_how_many_pairs_can_be_significant(num_different: int, expected: bool) -> None:
    others = [0.0] * num_different + [1.0] * 4
    result = compare([1.0] * len(others), others, higher_is_better=True, seed=0)
    assert result.can_be_significant is expected
    assert (result.p_value < 0.05) is expected


@pytest.mark.parametrize(("values", "others"), [([], []), ([1.0], [1.0, 0.5])])
def test_scores_that_are_no_pairs(values: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match=rf"are needed: {len(values)} and {len(others)}"):
        compare(values, others, higher_is_better=True, seed=0)
