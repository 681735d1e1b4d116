"""NRRD and MetaImage files: the voxels and the affine of their NIfTI twin, or a clear fault."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import AFFINE
from image_files import OBLIQUE, phantom, save_itk, save_nifti_twin

from pipeline.data.itk_images import read_itk_volume
from pipeline.data.itk_library import load_itk
from pipeline.data.nifti import read_volume
from pipeline.errors import DataError

SHEARED = OBLIQUE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
VOLUME = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
NRRD_FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "2 3 4",
    "space directions": "(2,0,0) (0,3,0) (0,0,4)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,30)",
}
META_FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "ElementSpacing": "2 3 4",
    "DimSize": "2 3 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
# Of both sets of fields.
HAND_MADE_AFFINE = [[-2, 0, 0, -10], [0, -3, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]]


def content_of(volume: np.ndarray = VOLUME) -> bytes:
    return volume.tobytes(order="F")


def nrrd(folder: Path, data: bytes | None = None, **changes: str | None) -> Path:
    """Write a NRRD file whose fields are anything, sound or not; None leaves a field out."""
    fields = NRRD_FIELDS | {key.replace("_", " "): value for key, value in changes.items()}
    lines = [f"{key}: {value}\n" for key, value in fields.items() if value is not None]
    path = folder / "a.nrrd"
    data = content_of() if data is None else data
    path.write_bytes(f"NRRD0004\n# comment\n{''.join(lines)}\n".encode() + data)
    return path


def mha(folder: Path, data: bytes | None = None, **changes: str | None) -> Path:
    fields = META_FIELDS | changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # whatever follows it is voxels
    lines = [f"{key} = {value}\n" for key, value in fields.items() if value is not None]
    path = folder / "a.mha"
    path.write_bytes("".join(lines).encode() + (content_of() if data is None else data))
    return path


def fault_of(path: Path, **options: Any) -> tuple[str, str]:
    """Return (kind, found) of the one problem that reading raises."""
    with pytest.raises(DataError, match=r"expected .*; found ") as caught:
        read_itk_volume(path, **options)
    (problem,) = caught.value.problems
    assert (problem.case, problem.file, problem.severity) == ("", path.name, "error")
    assert problem.remedy
    assert str(path.parent) not in str(problem)
    return problem.kind, problem.found


# --- sound files -------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["flipped", "oblique"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_is_the_image_that_its_nifti_twin_is(
    tmp_path: Path, suffix: str, compressed: bool, affine: np.ndarray
) -> None:
    path = save_itk(tmp_path / f"a{suffix}", phantom(), affine, compressed=compressed)
    volume, found = read_itk_volume(path)
    expected, twin = read_volume(save_nifti_twin(tmp_path / "a.nii.gz", phantom(), affine))
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, expected)
    # The twin's header holds float32: at 31.5 mm they are 2e-6 apart.
    np.testing.assert_allclose(found, twin, rtol=0, atol=1e-5)
    # Ours come from float64, in which a direction is multiplied by its spacing again.
    np.testing.assert_allclose(found, affine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_sheared_affine_is_kept(tmp_path: Path, suffix: str) -> None:
    _, found = read_itk_volume(save_itk(tmp_path / f"a{suffix}", phantom(), SHEARED))
    np.testing.assert_allclose(found, SHEARED, rtol=0, atol=1e-12)  # rounding of float64


@pytest.mark.parametrize("stored", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_the_stored_type_is_kept_on_request(tmp_path: Path, suffix: str, stored: str) -> None:
    path = save_itk(tmp_path / f"a{suffix}", VOLUME.astype(stored))
    volume, _ = read_itk_volume(path, dtype=None)
    assert volume.dtype == stored
    np.testing.assert_array_equal(volume, VOLUME)
    assert read_itk_volume(path, dtype=np.uint8)[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("write", "changes", "stored"),
    [
        (nrrd, {"type": "signed char"}, "int8"),
        (nrrd, {"type": "int64"}, "<i8"),
        (nrrd, {"type": "uint64"}, "<u8"),
        (nrrd, {"endian": "big"}, ">i2"),
        (mha, {"ElementType": "MET_CHAR"}, "int8"),
        (mha, {"ElementType": "MET_LONG_LONG"}, "<i8"),
        (mha, {"BinaryDataByteOrderMSB": "True"}, ">i2"),
        (mha, {"ElementByteOrderMSB": "True"}, ">i2"),
    ],
)
def test_types_and_byte_orders_that_itk_s_wrappers_lack(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, str], stored: str
) -> None:
    path = write(tmp_path, VOLUME.astype(stored).tobytes(order="F"), **changes)
    volume, affine = read_itk_volume(path, dtype=None)
    assert volume.dtype == np.dtype(stored)
    np.testing.assert_array_equal(volume, VOLUME)
    np.testing.assert_array_equal(affine, HAND_MADE_AFFINE)


def test_itk_itself_reads_the_same_voxels(tmp_path: Path) -> None:
    """The voxels are decoded by us; ITK's own decoding is the twin."""
    itk = load_itk()
    path = save_itk(tmp_path / "a.mha", phantom(), compressed=True)
    reader = itk.ImageFileReader[itk.Image[itk.SS, 3]].New(FileName=str(path))
    reader.SetImageIO(itk.MetaImageIO.New())
    reader.Update()
    np.testing.assert_array_equal(
        read_itk_volume(path, dtype=None)[0], itk.array_from_image(reader.GetOutput()).T
    )


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1)), ("LAS", (-1, 1)), ("LPS", (-1, -1))],
)
def test_spaces_of_nrrd(tmp_path: Path, space: str, signs: tuple[int, int]) -> None:
    _, affine = read_itk_volume(nrrd(tmp_path, space=space))
    lps_to_space = np.diag([*signs, 1, 1])
    np.testing.assert_array_equal(affine, lps_to_space @ np.abs(HAND_MADE_AFFINE))


def test_a_segmentation_s_long_header_and_own_keys_are_passed_over(tmp_path: Path) -> None:
    path = nrrd(tmp_path)
    keys = "".join(f"Segment{n}_Name:=tumour: {n}\n" for n in range(500)).encode()
    path.write_bytes(path.read_bytes().replace(b"\n\n", b"\n" + keys + b"\n"))
    np.testing.assert_array_equal(read_itk_volume(path)[0], VOLUME)


def test_names_in_capitals(tmp_path: Path) -> None:
    path = nrrd(tmp_path).rename(tmp_path / "A.NRRD")
    np.testing.assert_array_equal(read_itk_volume(path)[0], VOLUME)


# --- damaged files -----------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_every_truncation_and_addition_is_noticed(
    tmp_path: Path, suffix: str, compressed: bool
) -> None:
    """ITK would fill what is missing from the image: with zeros, or with what memory holds."""
    path = save_itk(tmp_path / f"a{suffix}", phantom(), compressed=compressed)
    sound = path.read_bytes()
    kinds = set()
    for length in (len(sound) - 1, len(sound) - 5, len(sound) - 60):
        path.write_bytes(sound[:length])
        kinds.add(fault_of(path)[0])
    path.write_bytes(sound + b"\0")
    kinds.add(fault_of(path)[0])
    assert kinds == ({"checksum"} if compressed else {"length"})


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_flipped_bit_in_compressed_voxels(tmp_path: Path, suffix: str) -> None:
    path = save_itk(tmp_path / f"a{suffix}", phantom(), compressed=True)
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    assert fault_of(path)[0] == "checksum"


def test_more_compressed_voxels_than_the_header_says(tmp_path: Path) -> None:
    path = mha(tmp_path, zlib.compress(content_of() + b"\0\0"), CompressedData="True")
    assert fault_of(path) == ("length", "at least 50 bytes")


def test_a_header_that_promises_a_bomb(tmp_path: Path) -> None:
    path = nrrd(tmp_path, sizes="1000 1000 1000")
    assert fault_of(path) == ("length", "at most 48 bytes in a file of 48")


@pytest.mark.parametrize("write", [nrrd, mha])
def test_absurd_dimensions(tmp_path: Path, write: Callable[..., Path]) -> None:
    sizes = {"sizes" if write is nrrd else "DimSize": "1000000 1000000 1000000"}
    kind, found = fault_of(write(tmp_path, **sizes))
    assert kind == "dimensions"
    assert "1000000000000000000 voxels" in found


@pytest.mark.parametrize(
    ("write", "changes"),
    [
        (nrrd, {"dimension": "2", "sizes": "6 4"}),
        (nrrd, {"dimension": "4", "sizes": "2 3 4 1"}),
        (nrrd, {"sizes": "-2 3 4"}),
        (nrrd, {"sizes": "0 3 4"}),
        (nrrd, {"sizes": None}),
        (nrrd, {"kinds": "RGB-color domain domain"}),
        (nrrd, {"kinds": "vector domain domain"}),
        (nrrd, {"kinds": "complex domain domain"}),
        (mha, {"NDims": "2", "DimSize": "6 4"}),
        (mha, {"NDims": "4", "DimSize": "2 3 4 1"}),
        # MetaIO crashes on this one.
        (mha, {"NDims": "100000"}),
        (mha, {"DimSize": "2 3"}),
        (mha, {"DimSize": "-2 3 4"}),
        (mha, {"ElementNumberOfChannels": "3"}),
    ],
)
def test_what_is_not_one_volume(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, Any]
) -> None:
    assert fault_of(write(tmp_path, **changes))[0] == "dimensions"


@pytest.mark.parametrize(
    ("write", "changes", "words"),
    [
        (nrrd, {"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, "(-1 -1 0 -10)"),
        (nrrd, {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}, "nan"),
        (nrrd, {"space_directions": "none (0,1,0) (0,0,1)"}, "none"),
        (nrrd, {"space_origin": "(nan,nan,nan)"}, "nan"),
        (nrrd, {"space_origin": "(1,2)"}, "1 2"),
        (nrrd, {"space": "scanner-xyz"}, "space 'scanner-xyz'"),
        (nrrd, {"space": None}, "left and right cannot be told apart"),
        (nrrd, {"space_directions": None}, "space 'left-posterior-superior'"),
        (mha, {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "(-2 -3 0 -10)"),
        (mha, {"ElementSpacing": "0 3 4"}, "(0 0 0 -10)"),
        # MetaIO would take what is missing, and what is no number, for 0.
        (mha, {"ElementSpacing": "nan 3 4"}, "nan 3 4"),
        (mha, {"ElementSpacing": None}, "none"),
        (mha, {"Offset": "1 2"}, "1 2"),
        (mha, {"Offset": "1 2 x"}, "1 2 x"),
    ],
)
def test_geometry_that_cannot_be_used(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, Any], words: str
) -> None:
    kind, found = fault_of(write(tmp_path, **changes))
    assert kind == "affine"
    assert words in found


def test_units_other_than_millimetres(tmp_path: Path) -> None:
    assert fault_of(nrrd(tmp_path, space_units='"m" "m" "m"')) == ("units", "space units m")
    read_itk_volume(nrrd(tmp_path, space_units='"mm" "mm" "mm"'))


@pytest.mark.parametrize(
    ("write", "changes", "found"),
    [
        (nrrd, {"encoding": "ascii"}, "ascii"),
        (nrrd, {"encoding": "bzip2"}, "bzip2"),
        (nrrd, {"byte_skip": "-1"}, "byte skip -1"),
        (nrrd, {"line_skip": "3"}, "line skip 3"),
        (mha, {"BinaryData": "False"}, "text"),
        (mha, {"HeaderSize": "-1"}, "HeaderSize -1"),
    ],
)
def test_packings_that_are_not_read(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, str], found: str
) -> None:
    assert fault_of(write(tmp_path, **changes)) == ("encoding", found)


@pytest.mark.parametrize(
    ("write", "changes"),
    [
        (nrrd, {"data_file": "/etc/passwd"}),
        (nrrd, {"datafile": "LIST"}),
        (mha, {"ElementDataFile": "/etc/passwd"}),
        (mha, {"ElementDataFile": "LIST"}),
    ],
)
def test_a_header_that_names_another_file(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, str]
) -> None:
    """It could name any file of this machine."""
    assert fault_of(write(tmp_path, **changes)) == (
        "file-type",
        "a header that names another file",
    )


@pytest.mark.parametrize(
    ("name", "instead"), [("a.nhdr", ".nrrd"), ("a.mhd", ".mha"), ("A.MHD", ".mha")]
)
def test_detached_headers_are_refused_by_their_names(
    tmp_path: Path, name: str, instead: str
) -> None:
    (tmp_path / name).write_bytes(b"ObjectType = Image\n")
    with pytest.raises(DataError, match=rf"names another file. Save the image as .* or {instead}"):
        read_itk_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("write", "changes", "words"),
    [
        (nrrd, {"type": "block"}, "block"),
        (mha, {"ElementType": None}, "File cannot be read: a.mha for reading"),
    ],
)
def test_headers_that_itk_refuses(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, str], words: str
) -> None:
    kind, found = fault_of(write(tmp_path, **changes))
    assert kind == "header"
    assert words in found


def test_types_that_are_no_real_numbers(tmp_path: Path) -> None:
    kind, found = fault_of(mha(tmp_path, ElementType="MET_OTHER"))
    assert kind == "data-type"
    assert found == "1 of the type unknown"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nrrd", b"NRRD0004\ntype: short", "the end of the file"),
        ("a.nrrd", b"NRRD0004\n" + b"x" * 20_000, "a line too long"),
        ("a.nrrd", b"NRRD0004\n" + b"# x\n" * 5000, "more"),
        ("a.mha", b"ObjectType = Image\nNDims = 3\n", "the end of the file"),
        ("a.mha", b"ObjectType = Image\nNDims 3\n", "NDims 3"),
        ("a.mha", b"ObjectType = Image\nNDims = 3\nNDims = 2\n", "NDims"),
        ("a.mha", b"ObjectType=a\n" + b"".join(b"%d = 1\n" % n for n in range(5000)), "more"),
    ],
)
def test_headers_that_have_no_end(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    kind, found = fault_of(tmp_path / name)
    assert kind == "header"
    assert words in found


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "empty file"), (b"\x1f\x8bxx", "gzip"), (b"<html>", "HTML or XML page")],
)
def test_files_that_are_not_what_their_names_say(
    tmp_path: Path, name: str, content: bytes, found: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert fault_of(tmp_path / name) == ("file-type", found)


def test_one_format_under_the_other_s_name(tmp_path: Path) -> None:
    assert fault_of(nrrd(tmp_path).rename(tmp_path / "b.mha")) == ("file-type", "NRRD file")
    assert fault_of(mha(tmp_path).rename(tmp_path / "b.nrrd")) == ("file-type", "MetaImage file")


def test_missing_unreadable_and_lossy(tmp_path: Path) -> None:
    assert fault_of(tmp_path / "none.nrrd")[0] == "missing-file"
    (tmp_path / "folder.mha").mkdir()
    assert fault_of(tmp_path / "folder.mha")[0] == "unreadable-file"
    path = save_itk(tmp_path / "a.nrrd", np.full((2, 3, 4), 3.5, dtype=np.float32))
    kind, found = fault_of(path, dtype=np.uint8)
    assert kind == "not-lossless"
    assert "3.5" in found


# --- ITK's wrappers ----------------------------------------------------------------------------


def test_itk_loads_where_warnings_are_errors_and_in_several_threads(tmp_path: Path) -> None:
    """In a process of its own, because ITK is loaded here already; a crash is its exit code.

    The subprocess reads as `check` does, by several threads at once, every format once.
    """
    from image_files import save_dicom

    paths = [save_itk(tmp_path / f"a{suffix}", phantom()) for suffix in (".nrrd", ".mha")]
    save_dicom(tmp_path / "series", phantom())
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path\n"
        "from pipeline.data.images import read_image\n"
        "assert 'itk' not in sys.modules\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    sums = list(pool.map(lambda path: read_image(Path(path))[0].sum(), sys.argv[1:]))\n"
        "assert len(set(sums)) == 1, sums\n"
    )
    arguments = [str(path) for path in (*paths, tmp_path / "series")] * 2
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
