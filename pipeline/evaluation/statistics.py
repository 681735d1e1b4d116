"""Numbers over cases: summaries with bootstrap intervals, the empty-region rules, paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

NUM_RESAMPLES = 10_000
TAILS_PERCENT = (2.5, 97.5)
MIN_PAIRS = 6
"""With fewer pairs that differ, the signed-rank test's p is at least 2 / 2^5 = 0.0625."""

# Differences are rounded to this many decimals: sums in another order must not break a tie.
DECIMALS = 12
BATCH_VALUES = 1 << 20  # resampled values held at a time: 16 MiB with their indices

Score = float | None
Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """What the scores of one column amount to; a case without a value (None) is not counted.

    `standard_deviation` is the sample's (n - 1), and `interval_95` the bootstrap interval of the
    mean; both need two cases. The other numbers are None only where no case has a value.
    """

    num_cases: int
    mean: Score
    median: Score
    standard_deviation: Score
    minimum: Score
    maximum: Score
    interval_95: Interval | None


@dataclass(frozen=True)
class RuleMean:
    """The mean of one column under one empty-region rule, and over how many cases it is."""

    mean: Score
    num_cases: int


@dataclass(frozen=True)
class Comparison:
    """Two sets of scores of the same cases; differences are the first minus the other.

    `interval_95` is the bootstrap interval of the mean difference, `p_value` the two-sided one of
    Wilcoxon's signed-rank test over the `num_better` + `num_worse` cases that differ.
    """

    num_cases: int
    mean: float
    other_mean: float
    mean_difference: float
    interval_95: Interval | None
    p_value: float
    num_better: int
    num_worse: int
    num_equal: int

    @property
    def can_be_significant(self) -> bool:
        """Whether enough cases differ for p to fall below 0.05 at all."""
        return self.num_better + self.num_worse >= MIN_PAIRS


def summarise(values: Sequence[Score], *, seed: int) -> Summary:
    """Return the summary of one score over cases."""
    known = _known(values)
    if not known.size:
        return Summary(0, None, None, None, None, None, None)
    return Summary(
        num_cases=known.size,
        mean=float(known.mean()),
        median=float(np.median(known)),
        standard_deviation=float(known.std(ddof=1)) if known.size > 1 else None,
        minimum=float(known.min()),
        maximum=float(known.max()),
        interval_95=bootstrap_interval(known, seed=seed),
    )


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Interval | None:
    """Return the 95 % percentile interval of the mean, or None with fewer than two values.

    The cases are drawn with replacement `num_resamples` times; the interval is what the middle
    95 % of the means of these samples span (Efron 1979). The same seed gives the same draws for
    every column of the same length.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        return None
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    step = max(1, BATCH_VALUES // sample.size)
    for start in range(0, num_resamples, step):
        part = means[start : start + step]
        drawn = generator.integers(0, sample.size, (part.size, sample.size))
        part[:] = sample[drawn].mean(axis=1)
    low, high = np.percentile(means, TAILS_PERCENT)
    return float(low), float(high)


def means_by_rule(
    values: Sequence[float], *, reference_is_empty: Sequence[bool], worst: float
) -> dict[str, RuleMean]:
    """Return the mean under this project's rule and under the two others in use.

    ``stated`` is the rule of `pipeline.evaluation`, which the values follow; ``skip`` leaves out
    the cases whose reference region is empty, as MONAI's DiceMetric does by default; in
    ``worst_case`` such a case counts `worst`, whatever was predicted.
    """
    scores, empty = np.asarray(values, dtype=np.float64), np.asarray(reference_is_empty, dtype=bool)
    variants = {
        "stated": scores,
        "skip": scores[~empty],
        "worst_case": np.where(empty, worst, scores),
    }
    return {
        rule: RuleMean(float(kept.mean()) if kept.size else None, kept.size)
        for rule, kept in variants.items()
    }


def compare(
    values: Sequence[float], others: Sequence[float], *, higher_is_better: bool, seed: int
) -> Comparison:
    """Compare two scores of each case: `values` and `others` in the same order of cases.

    Cases that are equal count as such and do not enter the test (Wilcoxon's own treatment of
    zeros); where all are, p is 1.

    Raises:
        ValueError: They have different lengths, or there is no case.
    """
    if not values or len(values) != len(others):
        raise ValueError(
            f"two scores of each of at least 1 case are needed: {len(values)} and {len(others)}"
        )
    first, second = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    differences = np.round(first - second, DECIMALS)
    gains = differences if higher_is_better else -differences
    return Comparison(
        num_cases=differences.size,
        mean=float(first.mean()),
        other_mean=float(second.mean()),
        mean_difference=float(differences.mean()),
        interval_95=bootstrap_interval(differences, seed=seed),
        p_value=signed_rank_p(differences),
        num_better=int((gains > 0).sum()),
        num_worse=int((gains < 0).sum()),
        num_equal=int((gains == 0).sum()),
    )


def signed_rank_p(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test (1945) over the non-zero differences.

    SciPy's: exact where it can be, else by the normal approximation. 1 where nothing differs.
    """
    nonzero = differences[differences != 0]
    return float(wilcoxon(nonzero).pvalue) if nonzero.size else 1.0


def _known(values: Sequence[Score]) -> np.ndarray:
    return np.array([value for value in values if value is not None], dtype=np.float64)
