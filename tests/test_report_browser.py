"""The report in a browser, from disk, without a network: what is pressed, and then drawn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    AFFINE,
    LABELS,
    datalist_entry,
    make_case,
    nested_label,
    save_nifti,
    write_datalist,
)
from PIL import Image

from pipeline.report import main

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# WebGL2 by the processor, as there may be no graphics card.
SOFTWARE = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
SHAPE = (40, 44, 36)
VALUES = np.array(list(LABELS.values()), dtype=np.uint8)
WAIT_MS = 60_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "masks").mkdir()
    cases = [make_case(folder / "data", f"case_{n}", shape=SHAPE) for n in range(2)]
    for number, case in enumerate(cases):
        prediction = np.roll(nested_label(SHAPE), 3 * number, axis=0)
        save_nifti(folder / "masks" / f"{case.id}_seg.nii.gz", VALUES[prediction], AFFINE)
    entries = [datalist_entry(case, folder / "data") for case in cases]
    datalist = write_datalist(folder / "data" / "list.json", {"training": entries})
    out = folder / "report.html"
    assert main([str(folder / "masks"), str(datalist), "--html-only", "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def chromium(driver: Any) -> Iterator[Any]:
    browser = driver.chromium.launch(executable_path=BROWSER, args=SOFTWARE)
    yield browser
    browser.close()


class Visit:
    """A page opened from disk, its complaints, and everything that it tried to fetch."""

    def __init__(self, chromium: Any, report: Path, **options: Any) -> None:
        context = chromium.new_context(offline=True, **options)
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.fetched: list[str] = []
        self.page.on("console", lambda line: self.complaints.append(f"{line.type}: {line.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(report.as_uri())

    def shown(self, expected: str) -> None:
        self.page.locator(f'#stage[aria-busy=false][data-shown="{expected}"]').wait_for(
            timeout=WAIT_MS
        )

    def choose(self, group: str, name: str) -> None:
        self.page.locator(f'#{group} input[value="{name}"]').check(force=True)

    def picture(self, path: Path) -> np.ndarray:
        self.page.locator("#stage").screenshot(path=path)
        return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_planes_overlays_and_cases(chromium: Any, report: Path, tmp_path: Path) -> None:
    visit = Visit(chromium, report)
    visit.shown("0 flair prediction WT")
    first = visit.picture(tmp_path / "first.png")
    # Four views: in each quarter there is something.
    height, width = first.shape[0] // 2, first.shape[1] // 2
    for rows in (slice(0, height), slice(height, None)):
        for columns in (slice(0, width), slice(width, None)):
            assert first[rows, columns].std() > 5
    visit.choose("overlays", "none")
    visit.shown("0 flair none WT")
    bare = visit.picture(tmp_path / "bare.png")
    assert np.abs(first - bare).max() > 50
    visit.choose("images", "t2")
    visit.shown("0 t2 none WT")
    assert np.abs(visit.picture(tmp_path / "t2.png") - bare).max() > 20
    visit.choose("overlays", "error")
    visit.shown("0 t2 error WT")
    visit.choose("regions", "ET")
    visit.shown("0 t2 error ET")
    assert visit.page.locator("#legend li").all_inner_texts() == ["missed", "false"]
    visit.page.locator("#next").click()
    visit.shown("1 t2 error ET")
    assert visit.page.locator(".case-facts:visible h3").all_inner_texts() == ["case_0"]
    assert visit.complaints == []
    assert visit.fetched == [report.as_uri()]


def test_the_keyboard_does_it_all(chromium: Any, report: Path) -> None:
    visit = Visit(chromium, report)
    visit.shown("0 flair prediction WT")
    for key, expected in (
        ("3", "0 t1ce prediction WT"),
        ("o", "0 t1ce truth WT"),
        ("n", "1 t1ce truth WT"),
        ("p", "0 t1ce truth WT"),
        ("p", "1 t1ce truth WT"),
    ):
        visit.page.keyboard.press(key)
        visit.shown(expected)
    assert visit.complaints == []


def test_the_errors_are_where_the_masks_differ(chromium: Any, report: Path, tmp_path: Path) -> None:
    """The second of the list, which is the worst, is moved; the other one has no error."""
    visit = Visit(chromium, report)
    visit.shown("0 flair prediction WT")
    pictures = {}
    for number in (0, 1):
        for overlay in ("none", "error"):
            visit.choose("overlays", overlay)
            visit.shown(f"{number} flair {overlay} WT")
            pictures[number, overlay] = visit.picture(tmp_path / "picture.png")
        if number == 0:
            visit.page.locator("#next").click()
            visit.shown("1 flair error WT")
    assert np.abs(pictures[0, "none"] - pictures[0, "error"]).max() > 50
    assert np.abs(pictures[1, "none"] - pictures[1, "error"]).max() < 10


def test_without_webgl_there_are_pictures(driver: Any, report: Path) -> None:
    switched_off = ["--disable-gpu", "--disable-3d-apis"]
    browser = driver.chromium.launch(executable_path=BROWSER, args=switched_off)
    visit = Visit(browser, report)
    visit.page.locator("#no-viewer:visible").wait_for(timeout=WAIT_MS)
    assert visit.page.locator(".case-facts:visible img").count() == 2
    assert visit.page.locator("#stage:visible").count() == 0
    browser.close()


@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_is_wider_than_the_window(chromium: Any, report: Path, width: int) -> None:
    visit = Visit(chromium, report, viewport={"width": width, "height": 900})
    visit.shown("0 flair prediction WT")
    wide = visit.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
