"""Figures of a case: what they show, what they say, and that nothing overlaps or is cut off."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.data.colours import CLASS_COLOURS, ERROR_COLOURS
from pipeline.data.slices import Scan
from pipeline.reporting import figures
from pipeline.reporting.figures import ERROR_OPACITY, OPACITY, overview_figure, panel_figure
from pipeline.reporting.style import PRINT

NAMES = ("background", "necrotic_core", "oedema", "enhancing_tumour")
# To the left, to the back and down, 2 x 2 x 4 mm.
AFFINE = np.array([[-2, 0, 0, 40], [0, -2, 0, 50], [0, 0, -4, 60], [0, 0, 0, 1.0]])
SHAPE = (30, 40, 16)
FIGURES = (panel_figure, overview_figure)
Draw = Callable[..., bytes]


def make_image() -> np.ndarray:
    """Return a head, brighter to the front."""
    grids = np.meshgrid(*(np.linspace(-1.15, 1.15, size) for size in SHAPE), indexing="ij")
    return np.where(sum(grid**2 for grid in grids) < 1, 200 - 50 * grids[1], 0)


def make_masks() -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction and a truth that share a part."""
    prediction, truth = np.zeros((2, *SHAPE), np.uint8)
    truth[8:18, 10:20, 4:10], truth[10:16, 12:18, 5:9], truth[11:14, 13:16, 6:8] = 2, 3, 1
    prediction[10:20, 10:20, 4:10], prediction[12:18, 12:18, 5:9] = 2, 3
    return prediction, truth


def make_scan(*, with_truth: bool = True) -> Scan:
    prediction, truth = make_masks()
    return Scan.of(
        make_image(),
        affine=AFFINE,
        prediction=prediction,
        truth=truth if with_truth else None,
    )


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def count(png: bytes, colour: np.ndarray) -> int:
    # Agg blends in whole numbers: each of its steps may be off by one.
    return int((np.abs(pixels(png) - colour) <= 2).all(axis=-1).sum())


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a ninth of the pixels: places and texts are the same, and the tests are quicker."""
    monkeypatch.setitem(PRINT, "figure.dpi", 100)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn, before they became PNG."""
    kept: list[Figure] = []
    to_png = figures.png_bytes

    def keep(figure: Figure) -> bytes:
        kept.append(figure)
        return to_png(figure)

    monkeypatch.setattr(figures, "png_bytes", keep)
    return kept


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("draw", FIGURES)
def test_the_same_case_gives_the_same_bytes(draw: Draw) -> None:
    first, second = (draw(make_scan(), name="a", class_names=NAMES) for _ in range(2))
    assert first == second
    # Nothing is written but the picture and its resolution: no time, no version.
    assert set(Image.open(io.BytesIO(first)).info) == {"dpi"}


@pytest.mark.parametrize("draw", FIGURES)
def test_neither_uses_nor_changes_the_users_settings(draw: Draw) -> None:
    expected = draw(make_scan(), name="a", class_names=NAMES)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 40}):
        before = dict(mpl.rcParams)
        assert draw(make_scan(), name="a", class_names=NAMES) == expected
        assert dict(mpl.rcParams) == before


def test_the_panels_rows(drawn: list[Figure]) -> None:
    panel_figure(make_scan(), name="a", class_names=NAMES)
    panel_figure(make_scan(with_truth=False), name="a", class_names=NAMES)
    rows = ("prediction", "truth", "errors", "image")
    with_truth, without = ([text for text in texts(each) if text in rows] for each in drawn)
    assert with_truth == list(rows)
    assert without == ["prediction", "image"]


def test_the_panels_slices_are_evenly_spaced_from_below_to_above(drawn: list[Figure]) -> None:
    # Tumour from voxel 4 to 9 along an axis that runs down: 60 - 4 * 9 to 60 - 4 * 4 mm.
    panel_figure(make_scan(), name="a", class_names=NAMES)
    places = [text for text in texts(drawn[0]) if text.startswith("z = ")]
    assert places == [f"z = {height} mm" for height in (24, 28, 32, 36, 40, 44)]


def test_without_tumour_the_panel_goes_through_the_head(drawn: list[Figure]) -> None:
    scan = Scan.of(make_image(), affine=AFFINE, prediction=np.zeros(SHAPE, np.uint8))
    panel_figure(scan, name="a", class_names=NAMES)
    places = [text for text in texts(drawn[0]) if text.startswith("z = ")]
    assert len(places) == figures.NUM_SLICES
    assert "prediction (none)" in texts(drawn[0])


def test_the_panel_shows_classes_and_errors_in_their_colours() -> None:
    prediction, truth = make_masks()
    # No image: then a colour is its own, made darker.
    scan = Scan.of(np.zeros(SHAPE), affine=AFFINE, prediction=prediction, truth=truth)
    png = panel_figure(scan, name="a", class_names=NAMES)
    for index in (1, 2, 3):
        assert count(png, OPACITY * CLASS_COLOURS[index]) > 20, NAMES[index]
    for name, colour in ERROR_COLOURS.items():
        assert count(png, ERROR_OPACITY * np.array(colour)) > 20, name


@pytest.mark.parametrize(("missed", "false"), [(True, False), (False, True)], ids=str)
def test_an_error_is_shown_where_there_is_one(missed: bool, false: bool) -> None:
    nothing, mask = np.zeros((2, *SHAPE), np.uint8)
    mask[8:18, 10:20, 4:10] = 2
    scan = Scan.of(
        np.zeros(SHAPE),
        affine=AFFINE,
        prediction=mask if false else nothing,
        truth=mask if missed else nothing,
    )
    png = panel_figure(scan, name="a", class_names=NAMES)
    found = {
        name: count(png, ERROR_OPACITY * np.array(colour)) > 20
        for name, colour in ERROR_COLOURS.items()
    }
    assert found == {"missed": missed, "false": false}


def test_the_overview_says_classes_volumes_and_places(drawn: list[Figure]) -> None:
    overview_figure(make_scan(), name="case 7", class_names=NAMES)
    said = [text.replace("\N{LEFT-TO-RIGHT MARK}", "") for text in texts(drawn[0])]
    prediction, truth = make_masks()
    for index, name in enumerate(NAMES[1:], start=1):
        # A voxel holds 0.016 mL.
        volumes = [0.016 * np.count_nonzero(mask == index) for mask in (prediction, truth)]
        ours, theirs = (f"{each:.1f} mL" if each >= 1 else f"{each:.2g} mL" for each in volumes)
        assert f"{name.replace('_', ' ')}  {ours} (truth {theirs})" in said
    assert "case 7" in said
    planes = [text.split(", ")[0] for text in said if text.endswith(" mm")]
    assert planes == ["axial", "coronal", "sagittal"]
    assert "outline of the truth" in said


def test_the_overviews_letters_and_scale_bar(drawn: list[Figure]) -> None:
    overview_figure(make_scan(), name="a", class_names=NAMES)
    axial, coronal, sagittal = drawn[0].axes
    letters = {}
    for name, axes in (("axial", axial), ("coronal", coronal), ("sagittal", sagittal)):
        at = {text.get_position(): text.get_text() for text in axes.texts}
        horizontal = sorted((x, text) for (x, y), text in at.items() if y == 0.5)
        vertical = sorted((y, text) for (x, y), text in at.items() if x == 0.5)
        letters[name] = "".join(text for _, text in (*horizontal, *vertical))
    # From left to right, then from below to above.
    assert letters == {"axial": "RLPA", "coronal": "RLIS", "sagittal": "APIS"}
    (bar,) = (text.get_text() for text in axial.texts if text.get_text().endswith("mm"))
    assert bar == "20 mm"
    line = axial.lines[-1]
    start, end = line.get_xdata()
    left, right = axial.get_xlim()
    assert (end - start) * (right - left) == pytest.approx(20)


def test_all_views_have_one_scale(drawn: list[Figure]) -> None:
    """Also voxels of 2 x 2 x 4 mm have their shape."""
    overview_figure(make_scan(), name="a", class_names=NAMES)
    panel_figure(make_scan(), name="a", class_names=NAMES)
    for figure in drawn:
        scales = set()
        for axes in figure.axes:
            box = axes.get_window_extent()
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            scales |= {box.width / (right - left), box.height / (low - high)}
        assert max(scales) == pytest.approx(min(scales))


def test_the_truth_is_outlined_in_the_overview(drawn: list[Figure]) -> None:
    scan = make_scan()
    for each in (scan, make_scan(with_truth=False)):
        overview_figure(each, name="a", class_names=NAMES)
    axial, axial_without = (figure.axes[0] for figure in drawn)
    assert not axial_without.collections
    paths = [path for outlines in axial.collections for path in outlines.get_paths()]
    corners = np.concatenate([path.vertices for path in paths])
    # Ten voxels of 2 mm each way, counted from where the scan was cut.
    start = (np.linalg.inv(scan.affine) @ AFFINE @ [8, 10, 0, 1])[:2]
    assert np.ptp(corners, axis=0) == pytest.approx(20)
    assert corners.min(axis=0) == pytest.approx(2 * start)


def odd_scans() -> dict[str, Scan]:
    image, (prediction, truth) = make_image(), make_masks()
    nothing, many = np.zeros((2, *SHAPE), np.uint8)
    spots = np.random.default_rng(0).integers(0, np.array(SHAPE), (30, 3))
    many[tuple(spots.T)] = np.arange(30) % 3 + 1
    broken = image.copy()
    broken[::3] = np.nan
    grid = {"affine": AFFINE}
    flat = np.s_[:, :, 7:8]
    return {
        "no tumour": Scan.of(image, **grid, prediction=nothing),
        "no tumour, truth": Scan.of(image, **grid, prediction=nothing, truth=nothing),
        "empty prediction": Scan.of(image, **grid, prediction=nothing, truth=truth),
        "30 lesions": Scan.of(image, **grid, prediction=many, truth=np.roll(many, 1)),
        "one slice": Scan.of(image[flat], **grid, prediction=prediction[flat], truth=truth[flat]),
        "constant": Scan.of(np.ones(SHAPE), **grid, prediction=prediction),
        "nothing": Scan.of(np.zeros(SHAPE), **grid, prediction=nothing),
        "not a number": Scan.of(broken, **grid, prediction=prediction, truth=truth),
        "one voxel": Scan.of(np.ones((1, 1, 1)), **grid, prediction=np.ones((1, 1, 1), np.uint8)),
        "a line": Scan.of(
            np.arange(200.0).reshape(1, 1, 200), **grid, prediction=np.zeros((1, 1, 200), np.uint8)
        ),
    }


HOSTILE = {
    "usual": ("case_1", NAMES),
    "long": ("W" * 128, ("background", *("M" * 60,) * 8)),
    "strange": (
        "../../$\\frac{<script>\n\u202eabc\ud800\0",
        ("background", "_hidden", "$x", "\u6c34\u80bf", "\u0645\u0631\u062d\u0628\u0627", ""),
    ),
}


@pytest.mark.parametrize("names", HOSTILE)
@pytest.mark.parametrize("draw", FIGURES)
def test_nothing_overlaps_or_is_cut_off(draw: Draw, names: str, drawn: list[Figure]) -> None:
    name, class_names = HOSTILE[names]
    draw(make_scan(), name=name, class_names=class_names)
    require_tidy(drawn[0])


@pytest.mark.parametrize("case", odd_scans())
@pytest.mark.parametrize("draw", FIGURES)
def test_odd_cases_are_drawn_as_tidily(draw: Draw, case: str, drawn: list[Figure]) -> None:
    png = draw(odd_scans()[case], name=case, class_names=NAMES)
    width, height = Image.open(io.BytesIO(png)).size
    assert max(width, height) < 1400
    require_tidy(drawn[0])


def require_tidy(figure: Figure) -> None:
    """All text and views lie on the figure, and none on another; text of a view lies in it."""
    width, height = figure.bbox.size
    parts = {text.get_text(): text.get_window_extent() for text in figure.texts}
    parts |= {f"view {n}": axes.get_window_extent() for n, axes in enumerate(figure.axes)}
    for name, box in parts.items():
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name
    for (one, box), (other, other_box) in combinations(parts.items(), 2):
        assert box.width * box.height == 0 or not box.overlaps(other_box), (one, other)
    for axes in figure.axes:
        view = axes.get_window_extent()
        boxes = [text.get_window_extent() for text in axes.texts]
        assert all(view.x0 <= box.x0 and box.x1 <= view.x1 for box in boxes)
        assert all(view.y0 <= box.y0 and box.y1 <= view.y1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
