"""Every file of fuzz_corpus/: our error or a valid result, at once and in little memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import phantom, save_dicom
from models import save_model
from mutants import ours

from pipeline.bundle.contents import bundle_files, sums_of
from pipeline.data.datalist import read_datalist
from pipeline.data.images import read_image
from pipeline.model.bundle_files import METADATA, SUMS, WEIGHTS
from pipeline.model.trained import load_model

CORPUS = Path(__file__).parent / "fuzz_corpus"
MAX_SECONDS = 5  # a hundred times what the slowest takes
MAX_MIB = 100
TINY = {"name": "UNet3D", "num_levels": 1, "num_filters": 1}
# The only ones that are sound after all.
READ = {
    "two_members.nii.gz",
    "unknown_encoding.dcm",
}


def mutants(folder: str) -> list[Path]:
    return sorted((CORPUS / folder).glob("*.mutant"))


def name_of(path: Path) -> str:
    return path.name.removesuffix(".mutant")


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Fail where a mutant took much time, or raised the highest memory of the process."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - start < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_MIB * 1024


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a sound bundle; all libraries are loaded afterwards."""
    folder = tmp_path_factory.mktemp("sound")
    save_dicom(folder / "series", phantom((6, 5, 3)))
    read_image(folder / "series")
    model = load_model(save_model(folder / "run", network=TINY))
    model.build()
    inferer = {"window": None, "overlap": 0.5, "flips": False, "divisor": 1, "content_only": True}
    files = bundle_files(model, inferer=inferer)
    return {name: files[name] for name in (METADATA, WEIGHTS)}


def judge(path: Path, read: Callable[[], object]) -> None:
    assert (ours(read) is not None) == (name_of(path) in READ)


@pytest.mark.parametrize("path", mutants("images"), ids=name_of)
def test_an_image(path: Path, tmp_path: Path, sound: object) -> None:
    copy = tmp_path / name_of(path)
    copy.write_bytes(path.read_bytes())
    judge(path, lambda: read_image(copy))
    for dtype in (None, np.uint8):
        ours(lambda dtype=dtype: read_image(copy, dtype=dtype, channels=True))  # type: ignore[misc]


@pytest.mark.parametrize("path", mutants("series"), ids=name_of)
def test_a_slice(path: Path, tmp_path: Path, sound: object) -> None:
    slices = save_dicom(tmp_path, phantom((6, 5, 3)))
    numbers = {content: file for file in slices if (content := instance_of(file.read_bytes()))}
    twin = numbers.get(instance_of(path.read_bytes()), slices[0])
    twin.write_bytes(path.read_bytes())
    judge(path, lambda: read_image(tmp_path))


def instance_of(content: bytes) -> bytes:
    """Return the instance number as stored: the first after its tag, of type IS."""
    return content.partition(b"\x20\x00\x13\x00IS\x02\x00")[2][:2]


@pytest.mark.parametrize("path", mutants("lists"), ids=name_of)
def test_a_data_list(path: Path, tmp_path: Path, sound: object) -> None:
    copy = tmp_path / name_of(path)
    copy.write_bytes(path.read_bytes())
    judge(path, lambda: read_datalist(copy))


@pytest.mark.parametrize("path", mutants("checkpoints"), ids=name_of)
def test_a_checkpoint(path: Path, tmp_path: Path, sound: object) -> None:
    copy = tmp_path / name_of(path)
    copy.write_bytes(path.read_bytes())
    judge(path, lambda: load_model(copy).build())


@pytest.mark.parametrize("path", mutants("bundles"), ids=name_of)
def test_a_bundle(path: Path, tmp_path: Path, sound: dict[str, bytes]) -> None:
    changed = METADATA if ".json" in path.name else WEIGHTS
    files = {**sound, changed: path.read_bytes()}
    for name, content in {**files, SUMS: sums_of(files)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    judge(path, lambda: load_model(tmp_path).build())
