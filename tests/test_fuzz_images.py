"""Damaged images of all formats: our error or a valid result, and no flipped bit is believed."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import phantom, save_dicom, save_itk
from mutants import (
    flipped_bit,
    gzip_variant,
    mutated_bytes,
    nifti_bytes,
    ours,
    with_strange_fields,
)

from pipeline.data.images import read_image
from pipeline.data.nifti import read_header

FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    # Every example writes the same file anew.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RANDOMS = st.integers(0, 2**32).map(Random)
DTYPES = st.sampled_from([np.float32, None, np.uint8, np.int16])
SEEDS = st.sampled_from([nifti_bytes(), nifti_bytes(second=True), nifti_bytes((4, 3, 2, 4))])


def read(path: Path, **options: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what `read_image` gives, which is an image, or None where it raises our error."""
    result = ours(lambda: read_image(path, **options))
    if result is not None:
        volume, affine = result
        assert volume.ndim == (4 if options.get("channels") else 3)
        assert affine.shape == (4, 4)
        assert np.all(np.isfinite(affine))
    return result


@FEW
@given(content=st.binary(max_size=600), name=st.sampled_from(["a.nii", "a.nii.gz", "a.img", "a"]))
def test_any_bytes_under_any_name(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) is None


@FEW
@given(random=RANDOMS, seed=SEEDS, dtype=DTYPES, channels=st.booleans())
def test_a_damaged_nifti_file(
    tmp_path: Path, random: Random, seed: bytes, dtype: Any, channels: bool
) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(random.choice((mutated_bytes, with_strange_fields))(random, seed))
    result = read(path, dtype=dtype, channels=channels)
    header = ours(lambda: read_header(path, channels=channels))
    assert result is None or header is not None


@FEW
@given(random=RANDOMS, seed=SEEDS, channels=st.booleans())
def test_a_damaged_gzip_stream(tmp_path: Path, random: Random, seed: bytes, channels: bool) -> None:
    stream = gzip_variant(random, with_strange_fields(random, seed))
    content = mutated_bytes(random, stream) if random.random() < 0.5 else stream
    (tmp_path / "a.nii.gz").write_bytes(content)
    read(tmp_path / "a.nii.gz", channels=channels)


@FEW
@given(random=RANDOMS, level=st.sampled_from([0, 1, 9]))
def test_no_flipped_bit_in_a_gzip_file_changes_the_image(
    tmp_path: Path, random: Random, level: int
) -> None:
    original = nifti_bytes()
    (tmp_path / "whole.nii").write_bytes(original)
    volume, affine = read_image(tmp_path / "whole.nii")
    damaged = flipped_bit(random, gzip.compress(original, compresslevel=level, mtime=0))
    (tmp_path / "a.nii.gz").write_bytes(damaged)
    result = read(tmp_path / "a.nii.gz")
    if result is not None:  # the flipped bit says when or on what system it was compressed
        assert np.array_equal(result[0], volume)
        assert np.array_equal(result[1], affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@FEW
@given(random=RANDOMS, is_header=st.booleans(), dtype=DTYPES)
def test_a_damaged_nrrd_or_metaimage_file(
    tmp_path: Path, suffix: str, random: Random, is_header: bool, dtype: Any
) -> None:
    path = tmp_path / f"a{suffix}"
    if not (original := path.with_name(f"whole{suffix}")).exists():
        save_itk(original, phantom(), compressed=random.random() < 0.5)
    content = original.read_bytes()
    end = content.index(b"\n\n" if suffix == ".nrrd" else b"LOCAL\n") if is_header else len(content)
    path.write_bytes(mutated_bytes(random, content[:end]) + content[end:])
    read(path, dtype=dtype)


@settings(FEW, max_examples=60)
@given(random=RANDOMS, start=st.sampled_from([0, 132, 300]))
def test_a_damaged_dicom_slice(tmp_path: Path, random: Random, start: int) -> None:
    folder = tmp_path / "series"
    if not folder.exists():
        save_dicom(folder, phantom((6, 5, 3)))
    path = random.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    path.write_bytes(content[:start] + mutated_bytes(random, content[start:]))
    read(folder)
    path.write_bytes(content)
