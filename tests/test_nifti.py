from __future__ import annotations

import gzip
import os
import re
import resource
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, save_nifti

from pipeline.data import nifti
from pipeline.data.nifti import cast_exactly, read_header, read_volume, write_volume
from pipeline.data.reading import MAX_MEMBER_BYTES, inflated_at_once
from pipeline.errors import DataError, ResourceError

SHEARED = AFFINE + np.array([[0, 0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4])
VOLUME = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


def nifti_bytes(volume: np.ndarray = VOLUME, **fields: Any) -> bytes:
    """A NIfTI-1 file whose header fields are set to anything, sound or not."""
    header = nib.Nifti1Header()
    header.set_data_dtype(volume.dtype)
    header.set_data_shape(volume.shape)
    header.set_sform(AFFINE, code=1)
    header.set_xyzt_units("mm")
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + volume.tobytes(order="F")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)
    return path


def fault_of(read: Callable[..., Any], path: Path, **options: Any) -> tuple[str, str]:
    """Return (kind, found) of the one problem that reading raises."""
    with pytest.raises(DataError, match=r"expected .*; found ") as caught:
        read(path, **options)
    (problem,) = caught.value.problems
    assert (problem.case, problem.file, problem.severity) == ("", path.name, "error")
    assert problem.expected
    assert problem.remedy
    return problem.kind, problem.found


# --- sound files -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("stored", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_reads_what_nibabel_reads(tmp_path: Path, stored: str, suffix: str) -> None:
    path = save_nifti(tmp_path / f"a{suffix}", VOLUME.astype(stored))
    volume, affine = read_volume(path)
    reference = nib.load(path)
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, reference.get_fdata())
    np.testing.assert_array_equal(affine, reference.affine)
    assert read_volume(path, dtype=None)[0].dtype == stored


def test_header_states_the_grid_in_millimetres(tmp_path: Path) -> None:
    header = read_header(save_nifti(tmp_path / "a.nii.gz", VOLUME))
    assert header.shape == (2, 3, 4)
    # The header holds float32.
    assert header.spacing_mm == pytest.approx((1.2, 0.9, 2.5), abs=1e-6)
    assert header.axcodes == "LPS"
    assert header.dtype == np.int16
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-6)


def test_reads_big_endian_files(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    image = nib.Nifti1Image(VOLUME.astype(">i2"), AFFINE, header=header)
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_header(tmp_path / "a.nii.gz").dtype == np.dtype(">i2")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz")[0], VOLUME)


def test_reads_nifti_2(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(VOLUME, AFFINE), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz")[0], VOLUME)


def test_skips_header_extensions(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 3000))
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_header(tmp_path / "a.nii.gz").data_offset > 3000
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz")[0], VOLUME)


def test_reads_gzip_files_of_several_members(tmp_path: Path) -> None:
    content = nifti_bytes()
    parts = [content[:100], content[100:360], b"", content[360:]]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(gzip.compress(part, mtime=0) for part in parts))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz")[0], VOLUME)


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, -1.0), (-0.5, 0.0), (1.0, 3.0)])
def test_scaling_is_applied(tmp_path: Path, slope: float, intercept: float) -> None:
    path = write(tmp_path / "a.nii", nifti_bytes(scl_slope=slope, scl_inter=intercept))
    np.testing.assert_array_equal(read_volume(path)[0], VOLUME * slope + intercept)
    assert read_volume(path, dtype=None)[0].dtype == np.float64


def test_slope_zero_means_no_scaling(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", nifti_bytes(scl_slope=0, scl_inter=7))
    np.testing.assert_array_equal(read_volume(path)[0], VOLUME)


def test_an_unset_data_offset_is_the_lowest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", nifti_bytes(vox_offset=0))
    np.testing.assert_array_equal(read_volume(path)[0], VOLUME)


def test_trailing_axes_of_length_one_are_dropped(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", VOLUME[..., None, None])
    np.testing.assert_array_equal(read_volume(path)[0], VOLUME)
    assert read_header(path).shape == (2, 3, 4)


def test_channels_come_first(tmp_path: Path) -> None:
    channels = np.stack([VOLUME, VOLUME + 100, VOLUME - 100], axis=-1)
    path = save_nifti(tmp_path / "a.nii.gz", channels)
    volume, _ = read_volume(path, channels=True)
    assert volume.shape == (3, 2, 3, 4)
    np.testing.assert_array_equal(volume[1], VOLUME + 100)
    assert read_header(path, channels=True).shape == (2, 3, 4, 3)


def test_a_single_volume_is_one_channel(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", VOLUME)
    np.testing.assert_array_equal(read_volume(path, channels=True)[0], VOLUME[None])


# --- damaged files -----------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.5, -1, -4, -8, -20, 5, 30])
def test_truncated_gzip(tmp_path: Path, keep: float) -> None:
    """-8 is a missing trailer, -4 a missing length; the content before them is complete."""
    path = write(tmp_path / "a.nii.gz", nifti_bytes())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else int(keep)])
    kind, found = fault_of(read_volume, path)
    assert kind == "checksum"
    assert "ends in the middle" in found


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """Some bits are idle: the gzip header's, and where two ways of repeating zeros are equal."""
    content = nifti_bytes()
    path = write(tmp_path / "a.nii.gz", content)
    sound = path.read_bytes()
    num_noticed = 0
    for position in range(0, 8 * len(sound), 3):
        damaged = bytearray(sound)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            volume, _ = read_volume(path)
        except DataError:
            num_noticed += 1
            continue
        assert gzip.decompress(damaged) == content
        np.testing.assert_array_equal(volume, VOLUME)
    assert num_noticed > 0.9 * 8 * (len(sound) - 10) / 3


@pytest.mark.parametrize(("start", "words"), [(-8, "incorrect data check"), (-4, "length check")])
def test_wrong_checksum_or_length_in_the_trailer(tmp_path: Path, start: int, words: str) -> None:
    path = write(tmp_path / "a.nii.gz", nifti_bytes())
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)
    kind, found = fault_of(read_volume, path)
    assert kind == "checksum"
    assert words in found


@pytest.mark.parametrize("garbage", [b"garbage", b"\0", b"\x1f\x8b"])
def test_anything_after_the_gzip_data(tmp_path: Path, garbage: bytes) -> None:
    path = write(tmp_path / "a.nii.gz", nifti_bytes())
    path.write_bytes(path.read_bytes() + garbage)
    assert fault_of(read_volume, path)[0] == "checksum"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("change", "words"), [(-1, "399 bytes"), (1, "401 bytes")])
def test_length_is_what_the_header_says(
    tmp_path: Path, suffix: str, change: int, words: str
) -> None:
    content = nifti_bytes()  # 352 + 24 voxels of 2 bytes = 400
    content = content[:change] if change < 0 else content + bytes(change)
    kind, found = fault_of(read_volume, write(tmp_path / f"a{suffix}", content))
    assert kind == "length"
    assert words in found


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.nii.gz", b"", "empty file"),
        ("a.nii", b"", "empty file"),
        ("a.nii.gz", nifti_bytes(), "NIfTI"),
        ("a.nii", gzip.compress(nifti_bytes(), mtime=0), "gzip"),
        ("a.nii.gz", b"<!DOCTYPE html><title>404</title>", "HTML or XML page"),
        ("a.nii.gz", b"PK\x03\x04" + bytes(500), "zip archive"),
        ("a.nii", bytes(500), "file of zeros"),
        ("a.nii", b"some text", "file of an unknown type"),
        ("a.nii", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("a.nii", nifti_bytes(magic=b"ni1"), "NIfTI header without its .img file"),
        ("a.nii.gz", gzip.compress(b"some text", mtime=0), "file of an unknown type"),
        ("a.nii.gz", gzip.compress(b"", mtime=0), "empty file"),
        ("a.nii.gz", gzip.compress(gzip.compress(nifti_bytes(), mtime=0), mtime=0), "gzip"),
        ("a.img", nifti_bytes(), "NIfTI"),
    ],
)
@pytest.mark.parametrize("read", [read_header, read_volume])
def test_true_type_is_named(
    tmp_path: Path, read: Callable[..., Any], name: str, content: bytes, found: str
) -> None:
    (tmp_path / name).write_bytes(content)
    kind, named = fault_of(read, tmp_path / name)
    assert kind == "file-type"
    assert named.startswith(found)


def test_missing_file(tmp_path: Path) -> None:
    assert fault_of(read_volume, tmp_path / "a.nii.gz") == ("missing-file", "no such file")


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.symlink_to(path)
    kind, found = fault_of(read_volume, path)
    assert kind == "unreadable-file"
    assert "symbolic links" in found


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        found = fault_of(read_volume, tmp_path / name)
        assert found == ("unreadable-file", "a folder or a device")


DAMAGED_HEADERS: list[tuple[dict[str, Any], str, str]] = [
    ({"dim": [7] + [32767] * 7}, "dimensions", "32767, 32767"),
    ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "dimensions", "35181150961663 voxels"),
    ({"dim": [3, 0, 3, 4, 1, 1, 1, 1]}, "dimensions", "(0, 3, 4)"),
    ({"dim": [3, 2, -3, 4, 1, 1, 1, 1]}, "dimensions", "(2, -3, 4)"),
    ({"dim": [2, 2, 12, 1, 1, 1, 1, 1]}, "dimensions", "(2, 12)"),
    ({"dim": [0, 2, 3, 4, 1, 1, 1, 1]}, "dimensions", "(0,)"),
    ({"dim": [4, 2, 3, 2, 2, 1, 1, 1]}, "dimensions", "(2, 3, 2, 2)"),
    ({"srow_x": [np.nan, 0, 0, 0]}, "affine", "nan"),
    ({"srow_x": [np.inf, 0, 0, 0]}, "affine", "inf"),
    ({"srow_x": [0, 0, 0, 0]}, "affine", "rows (0 0 0 0)"),
    ({"srow_x": [0, -0.9, 0, 0]}, "affine", "rows (0 -0.9 0 0)"),
    ({"srow_x": [1e30, 0, 0, 0]}, "affine", "(1e+30 0 0 0)"),
    ({"sform_code": 0, "qform_code": 1, "quatern_b": 5}, "affine", "nan"),
    ({"scl_slope": np.nan}, "scaling", "scl_slope nan"),
    ({"scl_slope": 1e38}, "scaling", "scl_slope 1e+38"),
    ({"scl_slope": 1e-30}, "scaling", "scl_slope 1e-30"),
    ({"scl_inter": np.inf}, "scaling", "scl_inter inf"),
    ({"datatype": 9999}, "header", "data code 9999"),
    ({"datatype": 32, "bitpix": 64}, "data-type", "complex64"),
    ({"datatype": 128, "bitpix": 24}, "data-type", "RGB"),
    ({"vox_offset": 100}, "header", "vox offset 100"),
    ({"vox_offset": 1e30}, "header", "vox_offset 1e+30"),
    ({"vox_offset": 352.5}, "header", "vox_offset 352.5"),
    ({"vox_offset": np.nan}, "header", "vox_offset nan"),
    ({"xyzt_units": 1}, "units", "metres"),
    ({"xyzt_units": 3}, "units", "micrometres"),
]


@pytest.mark.parametrize("read", [read_header, read_volume])
@pytest.mark.parametrize(("fields", "kind", "words"), DAMAGED_HEADERS)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in nibabel
def test_damaged_header(
    tmp_path: Path, read: Callable[..., Any], fields: dict[str, Any], kind: str, words: str
) -> None:
    path = write(tmp_path / "a.nii.gz", nifti_bytes(**fields))
    found_kind, found = fault_of(read, path)
    assert found_kind == kind
    assert words in found


def test_a_cut_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", struct.pack("<i", 540) + b"n+2\0" + bytes(100))
    kind, found = fault_of(read_header, path)
    assert kind == "header"
    assert "wrong size" in found


def test_memory_is_not_reserved_on_a_header_s_word(tmp_path: Path) -> None:
    """A file of 100 bytes cannot hold 1 GB; nothing near it may be allocated to find out."""
    content = nifti_bytes(dim=[3, 1000, 1000, 500, 1, 1, 1, 1])
    path = write(tmp_path / "a.nii.gz", content)
    tracemalloc.start()
    kind, found = fault_of(read_volume, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind == "length"
    assert f"in a file of {path.stat().st_size}" in found
    assert peak < 2**20


@pytest.mark.parametrize("num_members", [1, 64])
def test_decompression_bomb(tmp_path: Path, num_members: int) -> None:
    """24 voxels, then 16 MiB of zeros in one piece, or 1 GiB in 64: refused early, in bounds."""
    bomb = gzip.compress(bytes(2**24), mtime=0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(), mtime=0) + bomb * num_members)
    tracemalloc.start()
    kind, _ = fault_of(read_volume, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind == "length"
    assert peak < 32 * 2**20  # one chunk inflates to 8 MiB at most, held two or three times


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (3.9999, np.int32, "1 values are not whole numbers of int32: 3.9999"),
        (np.nan, np.int32, "nan"),
        (np.inf, np.uint8, "inf"),
        (300, np.uint8, "300"),
        (-1, np.uint8, "-1"),
        (2.0**40, np.int32, "1.09951e+12"),
    ],
)
def test_integers_are_cast_without_loss_only(
    tmp_path: Path, value: float, dtype: type, words: str
) -> None:
    stored = VOLUME.astype(np.float64)
    stored[1, 2, 3] = value
    kind, found = fault_of(read_volume, save_nifti(tmp_path / "a.nii.gz", stored), dtype=dtype)
    assert kind == "not-lossless"
    assert words in found
    with pytest.raises(ValueError, match=re.escape(words)):
        cast_exactly(stored, np.dtype(dtype))


def test_whole_numbers_are_cast_whatever_their_type(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", VOLUME.astype(np.float64))
    volume, _ = read_volume(path, dtype=np.uint8)
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(volume, VOLUME)


# --- all at once, or in pieces -----------------------------------------------------------------


@pytest.fixture
def in_pieces_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be read in pieces: the twin of reading all at once."""
    monkeypatch.setattr(nifti, "_read_at_once", lambda *_, **__: None)


@pytest.fixture
def at_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be read in pieces."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("read in pieces")

    monkeypatch.setattr(nifti, "_read_in_pieces", refuse)


@pytest.mark.usefixtures("at_once_only")
@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize("stored", ["uint8", "int16", "float64"])
def test_a_sound_file_is_read_all_at_once(tmp_path: Path, stored: str, level: int) -> None:
    volume = np.zeros((20, 30, 40), dtype=stored)
    volume[5:9, 5:9, 5:9] = np.arange(64).reshape(4, 4, 4)
    compressed = gzip.compress(nifti_bytes(volume), compresslevel=level)
    (tmp_path / "a.nii.gz").write_bytes(compressed)
    found, _ = read_volume(tmp_path / "a.nii.gz", dtype=None)
    assert found.dtype == stored
    np.testing.assert_array_equal(found, volume)
    found[0, 0, 0] = 1  # a caller may write into what it was given


def gzip_members() -> dict[str, bytes]:
    """Return files that hold `nifti_bytes` in their first member, or some of it."""
    content = nifti_bytes()
    whole = gzip.compress(content, mtime=0)
    stored = gzip.compress(content, compresslevel=0, mtime=0)
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = raw.compress(content) + raw.flush()
    # A checksum of the gzip header itself, which libdeflate does not look at.
    header = b"\x1f\x8b\x08\x02" + bytes(6)
    sealed = header + (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    return {
        "sound": whole,
        "larger than its content": stored,
        "two halves": gzip.compress(content[:200]) + gzip.compress(content[200:]),
        "an empty member behind": whole + gzip.compress(b""),
        "the same member twice": whole + whole,
        "its own end twice": whole + whole[-8:],
        "garbage, then its own end": whole + b"garbage" + whole[-8:],
        "zeros behind": whole + bytes(8),
        "cut": whole[:-1],
        "no end": whole[:-8],
        "a sealed header": sealed + deflated + whole[-8:],
        "a broken seal": sealed[:-1] + bytes([sealed[-1] ^ 1]) + deflated + whole[-8:],
        "one byte less": gzip.compress(content[:-1]),
        "one byte more": gzip.compress(content + b"\0"),
    }


def outcome(path: Path) -> tuple[str, str] | bytes:
    """Return the voxels, or kind and words of the error."""
    try:
        return read_volume(path)[0].tobytes()
    except DataError as error:
        (problem,) = error.problems
        return problem.kind, problem.found


@pytest.mark.parametrize("name", gzip_members())
def test_both_ways_of_reading_agree(
    tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip_members()[name])
    found = outcome(path)
    request.getfixturevalue("in_pieces_only")
    assert found == outcome(path)
    is_sound = name in ("sound", "larger than its content", "two halves", "a sealed header")
    assert isinstance(found, bytes) == (is_sound or name == "an empty member behind")


@pytest.mark.parametrize("num_bytes", [0, 399, 401, 400 + 2**32, MAX_MEMBER_BYTES + 1])
def test_only_the_promised_length_is_inflated(num_bytes: int) -> None:
    """libdeflate's binding takes 32 bits: 400 + 2**32 must not pass for 400."""
    compressed = gzip.compress(nifti_bytes())
    found = inflated_at_once(compressed, 400)
    assert found is not None
    assert found.tobytes() == nifti_bytes()
    assert inflated_at_once(compressed, num_bytes) is None


def test_a_file_much_larger_than_its_promise_is_not_read_whole(tmp_path: Path) -> None:
    """24 voxels, then 64 MiB that nothing compresses."""
    path = tmp_path / "a.nii.gz"
    with path.open("wb") as stream:
        stream.write(gzip.compress(nifti_bytes(), mtime=0))
        stream.write(np.random.default_rng(0).bytes(1 << 20) * 64)
    tracemalloc.start()
    kind, _ = fault_of(read_volume, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind == "checksum"
    assert peak < 2**20


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_writes_what_nibabel_and_we_read(tmp_path: Path, dtype: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_volume(path, VOLUME, affine=AFFINE, dtype=dtype)
    reference = nib.load(path)
    assert reference.get_data_dtype() == dtype
    np.testing.assert_array_equal(reference.get_fdata(), VOLUME)
    volume, affine = read_volume(path)
    np.testing.assert_array_equal(volume, VOLUME)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)  # the header holds float32


def test_both_forms_of_the_affine_are_written(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", VOLUME, affine=AFFINE, dtype=np.uint8)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), AFFINE, atol=1e-6)
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)  # through a quaternion
    assert header.get_xyzt_units() == ("mm", "sec")
    assert bytes(header["descrip"]).strip(b"\0") == b""


def test_a_sheared_affine_is_written_as_sform_alone(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", VOLUME, affine=SHEARED, dtype=np.uint8)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(read_header(tmp_path / "a.nii.gz").affine, SHEARED, atol=1e-6)


def test_channels_are_written_last_and_read_first(tmp_path: Path) -> None:
    channels = np.stack([VOLUME, VOLUME * 2])
    write_volume(tmp_path / "a.nii.gz", channels, affine=AFFINE, dtype=np.float32)
    assert nib.load(tmp_path / "a.nii.gz").shape == (2, 3, 4, 2)
    volume, _ = read_volume(tmp_path / "a.nii.gz", channels=True)
    np.testing.assert_array_equal(volume, channels)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, VOLUME, affine=AFFINE, dtype=np.uint8)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_writing_refuses_to_change_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not whole numbers of uint8: 0\.5"):
        write_volume(tmp_path / "a.nii.gz", VOLUME + 0.5, affine=AFFINE, dtype=np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_writing_does_not_mutate_its_arguments(tmp_path: Path) -> None:
    volume, affine = VOLUME.astype(np.float32), AFFINE.copy()
    write_volume(tmp_path / "a.nii", volume, affine=affine, dtype=np.float32)
    np.testing.assert_array_equal(volume, VOLUME)
    np.testing.assert_array_equal(affine, AFFINE)


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """A real refusal by the kernel (file size limit), in the middle of the write."""
    path = tmp_path / "a.nii"
    write_volume(path, VOLUME, affine=AFFINE, dtype=np.uint8)
    before = path.read_bytes()
    big = np.zeros((40, 40, 40), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"64352 bytes needed, \d+ bytes free"):
            write_volume(path, big, affine=AFFINE, dtype=np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii"]
    assert path.read_bytes() == before


def test_a_planted_link_is_replaced_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious.txt"
    target.write_text("precious")
    path = tmp_path / "a.nii"
    path.symlink_to(target)
    write_volume(path, VOLUME, affine=AFFINE, dtype=np.uint8)
    assert target.read_text() == "precious"
    assert not path.is_symlink()


@pytest.mark.real
def test_real_cases_read_as_nibabel_reads_them(real_cases: Path) -> None:
    path = sorted(real_cases.glob("*/*_t1ce.nii.gz"))[0]
    volume, affine = read_volume(path)
    reference = nib.load(path)
    np.testing.assert_array_equal(volume, np.asarray(reference.dataobj))
    np.testing.assert_array_equal(affine, reference.affine)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "cannot be read: at most 375 bytes"),
        (lambda content: content[:-1] + b"\xff", "voxels the same: False"),
        (lambda content: content[:280] + b"\0\0\0\x41" + content[284:], "affine the same: False"),
    ],
)
def test_a_file_that_does_not_hold_what_was_written_gets_no_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    """The disk, or the library below us, may write something else without a word."""
    path = tmp_path / "mask.nii"
    write_volume(path, VOLUME, affine=AFFINE, dtype=np.uint8)
    before = path.read_bytes()
    to_bytes = nib.Nifti1Image.to_bytes
    monkeypatch.setattr(nib.Nifti1Image, "to_bytes", lambda image: damage(to_bytes(image)))
    with pytest.raises(ResourceError, match=rf"^mask.nii: .*{message}"):
        write_volume(path, VOLUME + 1, affine=AFFINE, dtype=np.uint8)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mask.nii"]


def test_nan_and_infinity_are_written_as_they_are(tmp_path: Path) -> None:
    volume = np.array([np.nan, np.inf, -1.5], dtype=np.float32).reshape(1, 1, 3)
    write_volume(tmp_path / "map.nii.gz", volume, affine=AFFINE, dtype=np.float32)
    found, _ = read_volume(tmp_path / "map.nii.gz")
    np.testing.assert_array_equal(found, volume)
