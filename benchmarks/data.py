"""Full-size cases to measure on: real ones where they lie beside the project, else phantoms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import make_datalist, phantom

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "brats"
PHANTOMS = ROOT / "phantoms" / "benchmark"
MODALITIES = ("flair", "t1", "t1ce", "t2")
NUM_PHANTOMS = 4
NAMES = {
    "t1ce": ("t1ce", "t1c"),
    "t1": ("t1", "t1n"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
}


@dataclass(frozen=True)
class BenchmarkCase:
    """The four images of a case in the order of `MODALITIES`, and its mask."""

    id: str
    images: tuple[Path, ...]
    label: Path


def benchmark_cases(num_cases: int) -> tuple[list[BenchmarkCase], str]:
    """Return the first `num_cases` cases, 240x240x155 voxels, and in words what they are."""
    if REAL.is_dir():
        found = [case for folder in sorted(REAL.iterdir()) if (case := _case(folder)) is not None]
        kind = "real BraTS"
    else:
        if not (PHANTOMS / "datalist.json").exists():
            _make_phantoms()
        found = [case for folder in sorted(PHANTOMS.iterdir()) if (case := _case(folder))]
        kind = "phantom"
    chosen = found[:num_cases]
    words = "case" if len(chosen) == 1 else "cases"
    return chosen, f"{len(chosen)} {kind} {words} of 240x240x155 voxels"


def _case(folder: Path) -> BenchmarkCase | None:
    if not folder.is_dir():
        return None
    images = [_image(folder, modality) for modality in MODALITIES]
    labels = sorted(folder.glob("*seg.nii.gz"))
    if None in images or not labels:
        return None
    return BenchmarkCase(folder.name, tuple(path for path in images if path), labels[0])


def _image(folder: Path, modality: str) -> Path | None:
    for name in NAMES[modality]:
        for separator in "_-":
            for path in folder.glob(f"*{separator}{name}.nii.gz"):
                return path
    return None


def _make_phantoms() -> None:
    size = ["--shape", "240", "240", "155", "--spacing", "1"]
    assert phantom.main([str(PHANTOMS), "--cases", str(NUM_PHANTOMS), *size]) == 0
    assert make_datalist.main([str(PHANTOMS), "-o", str(PHANTOMS / "datalist.json")]) == 0
