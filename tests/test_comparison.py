"""Which way scores point, and what is said of a p value; the rest is in test_evaluate.py."""

from __future__ import annotations

import pytest

from pipeline.evaluation.comparison import TOO_FEW, note_of
from pipeline.evaluation.statistics import compare


@pytest.mark.parametrize(
    ("num_different", "note"), [(0, "no case differs: p is 1"), (5, TOO_FEW), (6, "")]
)
def test_what_is_said_of_p(num_different: int, note: str) -> None:
    others = [0.5] * num_different + [1.0] * (8 - num_different)
    assert note_of(compare([1.0] * 8, others, higher_is_better=True, seed=0)) == note
