"""The verb `report`: one file with everything in it, and the files beside it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import (
    AFFINE,
    LABELS,
    SHAPE,
    datalist_entry,
    make_case,
    nested_label,
    save_nifti,
    write_datalist,
)
from PIL import Image

from pipeline.cli import ExitCode
from pipeline.report import main
from pipeline.reporting import document
from pipeline.reporting.files import CaseFiles
from pipeline.reporting.volumes import crop_of, exact, picture, viewer_payload
from pipeline.training.run import METRICS
from pipeline.training.start import SETTINGS

VALUES = np.array(list(LABELS.values()), dtype=np.uint8)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u05d0\u05d1"


class Page(HTMLParser):
    """The elements of a page, the text of its scripts by id, and all that is read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script":
            name = attributes.get("id") or f"script{len(self.scripts)}"
            self.scripts[name] = self.scripts.get(name, "") + data
        elif tag != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def payload(self, number: int) -> dict[str, Any]:
        return json.loads(self.scripts[f"case-{number}"])


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """The list of three cases: masks that are right, empty, and of a case without a reference."""
    folder, masks = tmp_path / "data", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    cases = [make_case(folder, f"case_{n}", labelled=n < 2, fold=n % 2) for n in range(3)]
    predictions = [nested_label(SHAPE), np.zeros(SHAPE, np.uint8), nested_label(SHAPE)]
    for case, prediction in zip(cases, predictions, strict=True):
        save_nifti(masks / f"{case.id}_seg.nii.gz", VALUES[prediction], AFFINE)
    training, testing = (
        [datalist_entry(case, folder) for case in some] for some in (cases[:2], cases[2:])
    )
    return write_datalist(folder / "list.json", {"training": training, "testing": testing})


def report(*arguments: object, out: Path) -> int:
    return main([*map(str, arguments), "-o", str(out)])


def test_it_holds_every_case_the_worst_first(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report(tmp_path / "masks", cohort, out=out) == 0
    page = Page(out)
    options = [attributes["value"] for attributes in page.all("option")]
    assert options == ["0", "1", "2"]
    assert re.findall(r"case_\d", page.text)[-6:].count("case_2") >= 1
    order = [tag["aria-label"] for tag in page.all("article")]
    assert order == ["case_1", "case_0", "case_2"]  # empty, right, unknown
    assert set(page.payload(0)["masks"]) == {"prediction", "truth"}
    assert set(page.payload(2)["masks"]) == {"prediction"}
    assert list(page.payload(0)["images"]) == ["flair", "t1", "t1ce", "t2"]


def test_it_asks_nobody_for_anything(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report(tmp_path / "masks", cohort, "--html-only", out=out) == 0
    page = Page(out)
    for tag in ("link", "iframe", "object", "embed", "base", "form"):
        assert page.all(tag) == []
    assert not [each for each in page.all("script") if "src" in each]
    assert all(each["src"].startswith("data:") for each in page.all("img"))  # type: ignore[union-attr]
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    # In the order of the page; what has an id is data, which does not run.
    whole = re.findall(r"<script>(.*?)</script>", out.read_text(), re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in whole]
    assert digests == allowed
    assert not (tmp_path / "report").exists()


def test_the_same_gives_the_same_file(cohort: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert report(tmp_path / "masks", cohort, "--html-only", out=tmp_path / f"{name}.html") == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_files_beside_it(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tmp_path / "masks", cohort, out=tmp_path / "new" / "report.html") == 0
    folder = tmp_path / "new" / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "case_0",
        "case_1",
        "case_2",
        "lesions.csv",
    ]
    right = {
        path.relative_to(folder / "case_0").as_posix() for path in (folder / "case_0").rglob("*.*")
    }
    meshes = {"WT.stl", "TC.stl", "ET.stl", "regions.glb"}
    pictures = {"overview.png", "slices.png", "planes.gif"}
    assert right == pictures | meshes | {f"truth/{name}" for name in meshes}
    empty = {path.name for path in (folder / "case_1").iterdir() if path.is_file()}
    assert empty == pictures
    said = capsys.readouterr().out
    assert "3 cases: about 0.3 min" in said
    megabytes = (tmp_path / "new" / "report.html").stat().st_size / 1e6
    assert f"report.html ({megabytes:.1f} MB): open it in a browser." in said


def test_meshes_of_an_earlier_mask_go(cohort: Path, tmp_path: Path) -> None:
    masks, out = tmp_path / "masks", tmp_path / "report.html"
    assert report(masks, cohort, "--cases", "case_0", out=out) == 0
    folder = tmp_path / "report" / "case_0"
    assert (folder / "ET.stl").exists()
    without = nested_label(SHAPE)
    without[without == 3] = 2
    save_nifti(masks / "case_0_seg.nii.gz", VALUES[without], AFFINE)
    assert report(masks, cohort, "--cases", "case_0", out=out) == 0
    found = sorted(path.name for path in folder.glob("*.stl"))
    assert found == ["TC.stl", "WT.stl"]
    assert (folder / "truth" / "ET.stl").exists()


def test_meshes_that_are_not_the_reports_stay(cohort: Path, tmp_path: Path) -> None:
    """Within a report's own folder too: somebody saved a plan beside its meshes."""
    masks, out = tmp_path / "masks", tmp_path / "report.html"
    assert report(masks, cohort, "--cases", "case_0", out=out) == 0
    plans = [tmp_path / "report" / "case_0" / name for name in ("plan.stl", "truth/plan.stl")]
    for plan in plans:
        plan.write_bytes(b"mine")
    assert report(masks, cohort, "--cases", "case_0", out=out) == 0
    assert [plan.read_bytes() for plan in plans] == [b"mine", b"mine"]


@pytest.mark.parametrize("name", ["case_0/plan.stl", "lesions.csv"])
def test_a_folder_that_no_report_made_is_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    other = tmp_path / "report" / name
    other.parent.mkdir(parents=True)
    other.write_text("case,volume\n")
    assert report(tmp_path / "masks", cohort, out=tmp_path / "report.html") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'report'}: expected no such folder, an empty one, or that of" in error
    assert f"found {name.partition('/')[0]}. Choose another name" in error
    assert [path for path in (tmp_path / "report").rglob("*") if path.is_file()] == [other]
    assert other.read_text() == "case,volume\n"
    assert not (tmp_path / "report.html").exists()
    assert report(tmp_path / "masks", cohort, "--html-only", out=tmp_path / "report.html") == 0


def test_an_empty_folder_is_taken(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    options = ("--cases", "case_0")
    assert report(tmp_path / "masks", cohort, *options, out=tmp_path / "report.html") == 0
    assert (tmp_path / "report" / "case_0" / "WT.stl").exists()


def test_a_folder_that_cannot_be_read(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By patching, because nothing is forbidden to root."""
    (tmp_path / "report").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert report(tmp_path / "masks", cohort, out=tmp_path / "report.html") == 4
    assert "report: cannot be read: Permission denied" in capsys.readouterr().err


def test_a_report_that_was_interrupted_is_made_again(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: CaseFiles, content: object) -> None:
        raise KeyboardInterrupt

    masks, out = tmp_path / "masks", tmp_path / "report.html"
    with monkeypatch.context() as patched:
        patched.setattr(CaseFiles, "of_case", interrupted)
        assert report(masks, cohort, "--cases", "case_0", out=out) == ExitCode.RESUMABLE
    assert not out.exists()
    assert report(masks, cohort, "--cases", "case_0", out=out) == 0
    assert len((tmp_path / "report" / "lesions.csv").read_text().splitlines()) > 1


def test_names_do_nothing(cohort: Path, tmp_path: Path) -> None:
    """Labels may be called anything; a case's id is that of a file."""
    content = json.loads(cohort.read_text())
    content["labels"] = {
        HOSTILE if name == "oedema" else name: value for name, value in content["labels"].items()
    }
    content["regions"] = {"WT": [HOSTILE, "necrotic_core"], HOSTILE[:40]: [HOSTILE]}
    content["name"] = HOSTILE
    cohort.write_text(json.dumps(content))
    out = tmp_path / "report.html"
    assert report(tmp_path / "masks", cohort, out=out) == 0
    page = Page(out)
    assert len(page.all("script")) == 3 + 1 + 2  # cases, summary, NiiVue and ours
    assert all(each["src"].startswith("data:") for each in page.all("img"))  # type: ignore[union-attr]
    assert HOSTILE in [each["name"] for each in json.loads(page.scripts["report"])["classes"]]
    outside = [
        path for path in tmp_path.rglob("*.stl") if (tmp_path / "report") not in path.parents
    ]
    assert outside == []


def test_what_the_viewer_gets_is_the_case(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report(tmp_path / "masks", cohort, "--html-only", "--cases", "case_0", out=out) == 0
    payload = Page(out).payload(0)
    truth = decoded(payload["masks"]["truth"], payload["shape"])
    whole = nested_label(SHAPE)
    assert np.array_equal(
        np.unique(truth, return_counts=True), np.unique(whole, return_counts=True)
    )
    place = np.argwhere(truth == 3).mean(axis=0)
    expected = nib.affines.apply_affine(AFFINE, np.argwhere(whole == 3).mean(axis=0))
    found = nib.affines.apply_affine(np.array(payload["affine"]), place)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def decoded(mask: dict[str, str], shape: list[int]) -> np.ndarray:
    packed = gzip.decompress(base64.b64decode(mask["gzip"]))
    return np.frombuffer(packed, np.uint8).reshape(shape, order="F")


@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 9, 7), (1, 1, 1), (40, 30, 1)])
def test_a_mosaic_comes_apart_again(shape: tuple[int, int, int]) -> None:
    """Block by block, so that what WebP loses is less than what differs."""
    volume = np.zeros(shape, np.uint8)
    volume[..., :] = (np.arange(shape[2]) * (255 // shape[2])).astype(np.uint8)
    made = picture(volume)
    mosaic = np.asarray(Image.open(io.BytesIO(base64.b64decode(made["webp"]))).convert("L"))
    size_x, size_y, size_z = shape
    for z in range(size_z):
        left, top = (z % made["columns"]) * size_x, z // made["columns"] * size_y
        tile = mosaic[top : top + size_y, left : left + size_x].astype(int)
        assert abs(tile[size_y // 2, size_x // 2] - int(volume[0, 0, z])) <= 30


def test_masks_lose_nothing() -> None:
    volume = np.random.default_rng(0).integers(0, 255, (5, 6, 7)).astype(np.uint8)
    assert np.array_equal(decoded(exact(volume), [5, 6, 7]), volume)


def test_the_crop_holds_the_brain_and_every_mask() -> None:
    image, mask = np.zeros((30, 30, 30)), np.zeros((30, 30, 30), np.uint8)
    image[10:20, 10:20, 10:20] = np.nan
    image[12:18, 12:18, 12:18] = 5
    mask[25, 3, 29] = 1
    crop = crop_of([image, mask], affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    assert crop.box == (slice(8, 30), slice(0, 22), slice(8, 30))
    assert crop.affine[:3, 3].tolist() == [16.0, 0.0, 16.0]
    nothing = crop_of([np.zeros((3, 4, 5))], affine=np.eye(4))
    assert nothing.shape == (3, 4, 5)


def test_a_case_without_images_or_tumour_is_shown() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    payload = viewer_payload(images={}, masks={"prediction": empty}, maps={}, affine=np.eye(4))
    assert payload["shape"] == [4, 4, 4]
    assert not decoded(payload["masks"]["prediction"], [4, 4, 4]).any()


def test_what_the_check_finds_is_told(cohort: Path, tmp_path: Path) -> None:
    image = nib.load(cohort.parent / "case_0" / "case_0_t1.nii.gz")
    constant = np.full(SHAPE, 7, np.int16)
    save_nifti(cohort.parent / "case_0" / "case_0_t1.nii.gz", constant, image.affine)
    out = tmp_path / "report.html"
    assert report(tmp_path / "masks", cohort, "--html-only", "--cases", "case_0", out=out) == 0
    text = Page(out).text
    assert "What the check of the cases found" in text
    assert "constant" in text


def test_calibration_and_uncertainty_where_they_were_written(cohort: Path, tmp_path: Path) -> None:
    masks, out = tmp_path / "masks", tmp_path / "report.html"
    certain = np.moveaxis(np.eye(4, dtype=np.float32)[nested_label(SHAPE)], -1, 0)
    probabilities = (0.6 * certain + 0.1).transpose(1, 2, 3, 0)
    save_nifti(masks / "case_0_probabilities.nii.gz", probabilities, AFFINE)
    entropy = np.full((*SHAPE, 4), np.log(4) / 2, np.float32)
    save_nifti(masks / "case_0_entropy.nii.gz", entropy, AFFINE)
    assert report(masks, cohort, "--html-only", out=out) == 0
    page = Page(out)
    assert len(page.all("svg")) == 3
    assert "in voxels that are tumour in mask or reference; cases: 1" in page.text
    payload = page.payload([tag["aria-label"] for tag in page.all("article")].index("case_0"))
    picture_of_map = base64.b64decode(payload["maps"]["uncertainty"]["webp"])
    levels = np.asarray(Image.open(io.BytesIO(picture_of_map)).convert("L"))
    assert abs(int(np.median(levels[levels > 0])) - 128) <= 3  # half of the highest entropy


def run_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / SETTINGS).write_text(json.dumps({"seed": 7, "training": {"max_epochs": 2}}))
    rows = ["epoch,training_loss,dice_mean,dice_WT", "1,0.9,,", "2,0.7,0.5,0.6"]
    (folder / METRICS).write_text("\n".join(rows) + "\n")
    return folder


def test_a_run_without_masks_says_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report(run_folder(tmp_path / "run"), out=out) == 0
    page = Page(out)
    assert "There are no masks in run/masks" in page.text
    assert "training.max_epochs" in page.text
    assert len(page.all("svg")) == 1
    assert "script0" not in page.scripts, "a viewer of nothing is 2 MB"


def test_a_run_shows_its_own_masks(cohort: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    shutil.copytree(tmp_path / "masks", run / "masks")
    assert report(run, cohort, "--html-only", "--fold", 0, out=tmp_path / "report.html") == 0
    page = Page(tmp_path / "report.html")
    assert [tag["aria-label"] for tag in page.all("article")] == ["case_0"]
    assert len(page.all("svg")) == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{masks}"], 2, "masks need the data list (LIST)"),
        (["{nowhere}", "{list}"], 2, "expected the folder of a run or of masks"),
        (["{data}", "{list}"], 2, "expected a run (settings.json) or masks"),
        (["{masks}", "{list}", "--cases", "case_9"], 2, "found also case_9"),
    ],
)
def test_wrong_command_lines(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "masks": tmp_path / "masks",
        "nowhere": tmp_path / "nowhere",
        "data": tmp_path / "empty",
        "list": cohort,
    }
    assert report(*(word.format(**places) for word in words), out=tmp_path / "r.html") == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_mask_that_is_missing_or_on_another_grid(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, out = tmp_path / "masks", tmp_path / "report.html"
    moved = AFFINE.copy()
    moved[0, 3] += 5
    save_nifti(masks / "case_2_seg.nii.gz", VALUES[nested_label(SHAPE)], moved)
    assert report(masks, cohort, out=out) == 3
    assert "case_2" in capsys.readouterr().err
    (masks / "case_1_seg.nii.gz").unlink()
    assert report(masks, cohort, "--fold", 1, out=out) == 3
    assert "found none of case_1" in capsys.readouterr().err
    assert not out.exists()
    assert list(tmp_path.glob(".*")) == []


def test_a_changed_viewer_is_not_built_in(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "niivue.js"
    other.write_text("alert(1)")
    monkeypatch.setattr(document, "NIIVUE", other)
    with pytest.raises(RuntimeError, match="not the file that this package was made with"):
        report(tmp_path / "masks", cohort, "--html-only", out=tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
