"""The models that are kept under `bundles/` go on working while the code around them changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline import evaluate, infer, make_datalist, phantom
from pipeline.data.json_files import read_json

BUNDLES = Path(__file__).parent.parent / "bundles"
KEPT = sorted(path.parent.parent for path in BUNDLES.glob("*/configs/metadata.json"))
LARGEST_BYTES = 12e6


def test_a_model_is_kept() -> None:
    assert KEPT


@pytest.mark.parametrize("bundle", KEPT, ids=lambda bundle: bundle.name)
def test_a_kept_model_is_whole_small_and_says_what_it_is(bundle: Path) -> None:
    listed = dict(
        reversed(line.split("  ")) for line in (bundle / "SHA256SUMS").read_text().splitlines()
    )
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    assert {str(path.relative_to(bundle)) for path in files} == set(listed)
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert listed[str(path.relative_to(bundle))] == digest, path.name
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES
    notes = (BUNDLES / f"{bundle.name}.md").read_text()
    assert notes.strip() in (bundle / "README.md").read_text()
    for section in ("Data", "Licence", "Folds and settings", "Limits"):
        assert f"\n### {section}\n" in notes


@pytest.mark.parametrize("bundle", KEPT, ids=lambda bundle: bundle.name)
def test_a_kept_model_finds_a_phantoms_tumour(bundle: Path, tmp_path: Path) -> None:
    """It was trained on patients and has seen no phantom: 0.87, 0.81 and 0.55 when it was made."""
    cohort, cases = tmp_path / "phantoms", str(tmp_path / "phantoms" / "datalist.json")
    made = ["--cases", "2", "--shape", "120", "120", "78", "--spacing", "2", "--seed", "0"]
    assert phantom.main([str(cohort), *made]) == 0
    assert make_datalist.main([str(cohort), "-o", cases, "--folds", "2"]) == 0
    chosen = ["--cases", "Phantom_00001"]
    masks, scores = str(tmp_path / "masks"), str(tmp_path / "scores")
    assert infer.main(["-m", str(bundle), cases, *chosen, "-o", masks]) == 0
    assert evaluate.main([masks, cases, *chosen, "-o", scores]) == 0
    found = read_json(tmp_path / "scores" / "summary.json")["summary"]
    assert found["dice_WT"]["mean"] >= 0.75
    assert found["dice_TC"]["mean"] >= 0.65
