"""Charts as SVG: what they show, and that they are safe and readable in any page."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from pipeline.errors import DataError
from pipeline.reporting.charts import distributions, reliability, training_curves

HOSTILE = '</svg><script>alert("1")</script> & $x$ \u202e'
SVG = "{http://www.w3.org/2000/svg}"


def make_rows(num_epochs: int = 6, *, regions: tuple[str, ...] = ("WT", "ET")) -> list[dict]:
    """Return rows of metrics.csv in which every second epoch was validated."""
    rows = []
    for epoch in range(1, num_epochs + 1):
        row = {"epoch": str(epoch), "training_loss": str(2 / epoch)}
        for name in ("mean", *regions):
            row[f"dice_{name}"] = str(epoch / 10) if epoch % 2 == 0 else ""
            row[f"background_dice_{name}"] = "0.0"
        rows.append(row)
    return rows


CHARTS: dict[str, Callable[[str], str]] = {
    "curves": lambda text: training_curves(make_rows(regions=("WT", text)), title=text),
    "distributions": lambda text: distributions(
        {"WT": [0.5, 0.75, 0.8], text: [0.1]}, label="Dice", title=text, limits=(0, 1)
    ),
    "reliability": lambda text: reliability([(0.5, 0.4, 10), (0.9, 0.95, 1000)], title=text),
}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - ours


@pytest.mark.parametrize("chart", CHARTS)
def test_the_same_values_give_the_same_text(chart: str) -> None:
    assert CHARTS[chart]("a") == CHARTS[chart]("a")
    assert not re.search(r"20\d\d-\d\d|[Mm]atplotlib|<metadata", CHARTS[chart]("a"))


@pytest.mark.parametrize("chart", CHARTS)
def test_it_is_one_element_with_a_name(chart: str) -> None:
    root = parsed(CHARTS[chart]("Dice of all cases"))
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Dice of all cases"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == "Dice of all cases"


@pytest.mark.parametrize("chart", CHARTS)
def test_no_name_gets_out_of_its_text(chart: str) -> None:
    svg = CHARTS[chart](HOSTILE)
    root = parsed(svg)
    assert "<script" not in svg
    assert not any("script" in str(element.tag) for element in root.iter())
    assert "\u202e" not in svg
    assert root.get("aria-label") == HOSTILE.replace("\u202e", "\ufffd")


@pytest.mark.parametrize("chart", CHARTS)
def test_text_and_axes_have_the_pages_colour_on_the_pages_ground(chart: str) -> None:
    svg = CHARTS[chart]("a")
    root = parsed(svg)
    assert all("fill: currentColor" in str(each.get("style")) for each in root.iter(f"{SVG}text"))
    assert "stroke: currentColor" in svg
    # Neither black nor white, which one of two pages would hide, nor the stand-in for its colour.
    assert not re.search(r"#000000|#ffffff|#010203", svg)
    ground = next(root.iter(f"{SVG}path"))
    assert ground.get("style") == "fill: none"


@pytest.mark.parametrize("chart", CHARTS)
def test_the_page_around_it_stays_as_it_is(chart: str) -> None:
    svg = CHARTS[chart]("a")
    assert "<style" not in svg
    assert "font-family" not in svg
    root = parsed(svg)
    assert root.get("width") is None
    assert root.get("viewBox")
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    # Groups have none; what is left is referred to, and named after what it is.
    assert all(re.fullmatch(r"[a-zA-Z][0-9a-f]{10}|C\w+", each or "") for each in ids), ids
    assert ids <= set(re.findall(r"#(\w+)", svg))


def test_the_curves_names() -> None:
    said = texts(training_curves(make_rows(regions=("WT", "_hidden", "$x")), title="a"))
    for name in ("training loss", "Dice in validation", "epoch", "WT", " hidden", "$x", "mean"):
        assert name in said
    # The background's own scores are no region's.
    assert not any("background" in text for text in said)


def test_epochs_without_validation_leave_no_mark() -> None:
    marks = {}
    for num_epochs in (2, 6):
        root = parsed(training_curves(make_rows(num_epochs, regions=("WT",)), title="a"))
        # Marks of the region's colour.
        marks[num_epochs] = sum(
            "fill: #009e73" in str(each.get("style")) for each in root.iter(f"{SVG}use")
        )
    # Two more epochs were validated; the legend's mark is there each time.
    assert marks == {2: 2, 6: 4}


@pytest.mark.parametrize(
    ("rows", "num_notes"),
    [
        ([], 2),
        ([{"epoch": "1", "training_loss": "1.5"}], 1),
        ([{"epoch": "1", "training_loss": "nan", "dice_mean": "", "dice_WT": ""}], 2),
        ([{"epoch": "1", "training_loss": "1.5", "dice_WT": None}], 1),
    ],
    ids=["no epoch", "no validation", "nothing finite", "row cut short"],
)
def test_curves_without_values_say_so(rows: list[dict], num_notes: int) -> None:
    assert texts(training_curves(rows, title="a")).count("no values yet") == num_notes


def test_a_cell_that_is_no_number_is_named() -> None:
    rows = make_rows()
    rows[2]["dice_WT"] = "0.8,5"
    with pytest.raises(DataError, match=r"row 3, dice_WT: expected a number .* found '0\.8,5'"):
        training_curves(rows, title="a")


def test_each_case_is_a_dot_beside_the_median_and_the_middle_half() -> None:
    scores = {"WT": [0.0, 0.25, 0.5, 0.75, 1.0, None, float("nan")], "ET": []}
    svg = distributions(scores, label="Dice", title="a", limits=(0, 1))
    dots = [use for use in parsed(svg).iter(f"{SVG}use") if "#009e73" in str(use.get("style"))]
    assert len(dots) == 5
    said = texts(svg)
    assert "0.500 (0.250 to 0.750)" in said
    assert {"WT", "n = 5", "ET", "n = 0"} <= set(said)


def test_millimetres_are_said_with_one_digit() -> None:
    svg = distributions({"WT": [1.0, 373.13], "ET": [0.5]}, label="HD95 in mm", title="a")
    assert {"187.1 (94.0 to 280.1)", "0.5 (0.5 to 0.5)"} <= set(texts(svg))


def test_no_region_at_all() -> None:
    assert "no values yet" in texts(distributions({}, label="Dice", title="a"))


def test_bins_without_voxels_are_left_out() -> None:
    svg = reliability([(0.5, 0.4, 10), (0.7, 0.1, 0), (0.9, 0.95, 1000)], title="a")
    assert svg == CHARTS["reliability"]("a")


@pytest.mark.parametrize("bins", [[], [(0.5, 0.5, 0)]], ids=["none", "empty"])
def test_without_bins_the_diagonal_is_left(bins: list[tuple[float, float, int]]) -> None:
    assert "confidence" in texts(reliability(bins, title="a"))
