"""Tables on a console and in Markdown; what stands in them is tested in test_evaluate.py."""

from __future__ import annotations

import pytest

from pipeline.cli import console
from pipeline.evaluation.tables import Grid


def test_a_grid_as_markdown() -> None:
    grid = Grid("A | B", ("name", "two\nlines"), [("x|y", "1")])
    assert grid.to_markdown() == (
        "**A \\| B**\n\n| name | two lines |\n| --- | ---: |\n| x\\|y | 1 |\n"
    )


def test_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would take them for markup, and drop them or fail."""
    console().print(Grid("[red]title", ("[bold]name",), [("[/x]",)]).to_rich())
    output = capsys.readouterr().out
    for words in ("[red]title", "[bold]name", "[/x]"):
        assert words in output
