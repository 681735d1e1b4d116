"""Meshes: volumes and places against shapes known from geometry, and the files against a reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
import trimesh
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from pipeline.data.colours import CLASS_COLOURS
from pipeline.errors import ResourceError
from pipeline.reporting.meshes import GLB, colour_class, mesh_files, region_mesh

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
# What the level is searched to, for components of any size. Required is 3 % above 1 mL.
VOLUME = 5e-3
# Coordinates go through float32 in the files: 24 bits of some hundred mm.
FLOAT32_MM = 1e-4


def affine_of(
    spacing_mm: tuple[float, float, float],
    *,
    angles: tuple[float, float, float] = (0, 0, 0),
    mirrored: bool = False,
) -> np.ndarray:
    """Return an affine that turns by `angles` in degrees; its origin lies off the grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] *= np.array(spacing_mm) * (-1 if mirrored else 1, 1, 1)
    affine[:3, 3] = (31.5, -17.25, 8.0)
    return affine


AFFINES = {
    "cubic": affine_of((1, 1, 1)),
    "mirrored": affine_of((1, 1, 1), mirrored=True),
    "thick slices": affine_of((1, 1, 3)),
    "fine": affine_of((0.5, 0.7, 0.6)),
    "oblique": affine_of((0.9, 1.2, 1.0), angles=(20, -35, 50)),
    "oblique, mirrored, thick slices": affine_of((3, 1, 1), angles=(-15, 25, 70), mirrored=True),
}
CUBIC = AFFINES["cubic"]
in_any_space = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())

# Shapes around the origin: points (..., 3) in mm -> inside or not.
Shape = Callable[[np.ndarray], np.ndarray]
SHAPES: dict[str, tuple[Shape, float, int]] = {  # with the volume in mm3, and Euler's number
    "sphere": (lambda p: norm(p) < 12, 4 / 3 * np.pi * 12**3, 2),
    "ellipsoid": (lambda p: norm(p / (17, 9, 7)) < 1, 4 / 3 * np.pi * 17 * 9 * 7, 2),
    "torus": (
        lambda p: np.hypot(norm(p[..., :2]) - 11, p[..., 2]) < 7,
        2 * np.pi**2 * 11 * 7**2,
        0,
    ),
    "shell": (lambda p: (norm(p) < 14) & (norm(p) > 8), 4 / 3 * np.pi * (14**3 - 8**3), 4),
}
CENTRE_MM = np.array([4.3, -2.6, 11.9])


def norm(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=-1)


def voxels_of(shape: Shape, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a shape around `CENTRE_MM` as a mask, and the affine of the grid that holds it."""
    corners = np.array(np.meshgrid(*[(-19, 19)] * 3)).reshape(3, -1).T + CENTRE_MM
    indices = apply_affine(np.linalg.inv(affine), corners)
    low = np.floor(indices.min(axis=0))
    size = (np.ceil(indices.max(axis=0)) - low).astype(int) + 1
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, low)
    points = apply_affine(moved, np.moveaxis(np.indices(size), 0, -1).astype(float))
    return shape(points - CENTRE_MM), moved


def mesh_of(mask: np.ndarray, affine: np.ndarray = CUBIC) -> trimesh.Trimesh:
    mesh = region_mesh(mask, affine=affine)
    assert mesh is not None
    return mesh


def volume_mm3(mask: np.ndarray, affine: np.ndarray = CUBIC) -> float:
    return np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3]))


def winding_numbers(mesh: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """Return 1 for points inside and 0 outside, from the solid angles of all triangles."""
    numbers = []
    for point in points:
        a, b, c = np.moveaxis(mesh.triangles - point, 1, 0)
        la, lb, lc = norm(a), norm(b), norm(c)
        triple = np.einsum("ij,ij->i", a, np.cross(b, c))
        dots = [np.einsum("ij,ij->i", *pair) for pair in ((a, b), (b, c), (c, a))]
        below = la * lb * lc + dots[0] * lc + dots[1] * la + dots[2] * lb
        numbers.append(2 * np.arctan2(triple, below).sum() / (4 * np.pi))
    return np.array(numbers)


def assert_on_the_right_side_of_every_voxel(
    mesh: trimesh.Trimesh, mask: np.ndarray, affine: np.ndarray = CUBIC
) -> None:
    padded = np.pad(mask, 1)
    centres = apply_affine(affine, np.argwhere(np.ones_like(padded)) - 1)
    found = winding_numbers(mesh, centres)
    # Whole numbers but for rounding, where the mesh is closed.
    np.testing.assert_allclose(found, padded.ravel(), atol=1e-6)


# ---- Shapes -------------------------------------------------------------------------------------


@in_any_space
@pytest.mark.parametrize("shape", SHAPES)
def test_volume_and_place_are_those_of_the_voxels(shape: str, affine: np.ndarray) -> None:
    inside, analytic_mm3, euler_number = SHAPES[shape]
    mask, affine = voxels_of(inside, affine)
    mesh = mesh_of(mask, affine)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    # Signed: with normals inwards it would be negative.
    assert mesh.volume == pytest.approx(volume_mm3(mask, affine), rel=VOLUME)
    # The voxels themselves are off: of the torus there are but five thick slices.
    assert mesh.volume == pytest.approx(analytic_mm3, rel=0.03)
    voxels_centre = apply_affine(affine, np.argwhere(mask)).mean(axis=0)
    np.testing.assert_allclose(mesh.center_mass, voxels_centre, atol=0.1)
    np.testing.assert_allclose(mesh.center_mass, CENTRE_MM, atol=0.3)
    assert mesh.euler_number == euler_number


@in_any_space
def test_the_surface_lies_where_the_sphere_is_and_faces_away_from_it(affine: np.ndarray) -> None:
    mask, affine = voxels_of(SHAPES["sphere"][0], affine)
    mesh = mesh_of(mask, affine)
    outwards = mesh.triangles_center - CENTRE_MM
    assert (np.einsum("ij,ij->i", mesh.face_normals, outwards) > 0).all()
    # Within half the diagonal of a voxel everywhere, and much nearer on average.
    spacing_mm = norm(affine[:3, :3].T)
    distances_mm = np.abs(norm(mesh.vertices - CENTRE_MM) - 12)
    assert distances_mm.max() < norm(spacing_mm) / 2
    assert distances_mm.mean() < 0.1 * spacing_mm.max()


@pytest.mark.parametrize(("name", "tolerance"), [("cubic", 0.015), ("thick slices", 0.015)])
def test_the_staircase_is_smoothed(name: str, tolerance: float) -> None:
    # A surface with steps is larger: marching cubes of the mask itself have 9 % more.
    mask, affine = voxels_of(SHAPES["sphere"][0], AFFINES[name])
    assert mesh_of(mask, affine).area == pytest.approx(4 * np.pi * 12**2, rel=tolerance)


def test_the_voxels_place_within_the_volume_does_not_matter() -> None:
    mask, affine = voxels_of(SHAPES["ellipsoid"][0], AFFINES["oblique"])
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, (-5, -7, -9))
    wider = np.pad(mask, [(5, 20), (7, 3), (9, 0)])
    np.testing.assert_allclose(
        mesh_of(wider, moved).vertices, mesh_of(mask, affine).vertices, atol=FLOAT32_MM
    )


# ---- Small, thin and ragged ---------------------------------------------------------------------


def box_mask(*boxes: tuple[slice, ...], shape: tuple[int, int, int] = (9, 8, 7)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask


ALL = slice(None)
AWKWARD = {
    "one voxel": box_mask(np.s_[4, 4, 3]),
    "one voxel in a corner": box_mask(np.s_[0, 0, 6]),
    "a line": box_mask(np.s_[2:7, 4, 3]),
    "a plate": box_mask(np.s_[2:7, 2:6, 3]),
    "a plate through the volume": box_mask(np.s_[:, :, 3]),
    "the whole volume": box_mask(np.s_[:, :, :]),
    "all but one voxel": ~box_mask(np.s_[4, 4, 3]),
    "voxels that touch at an edge": box_mask(np.s_[3, 3, 3], np.s_[4, 4, 3]),
    "voxels that touch at a corner": box_mask(np.s_[3, 3, 3], np.s_[4, 4, 4]),
    "voxels one apart": box_mask(np.s_[3, 3, 3], np.s_[5, 3, 3]),
    "a stalk on a block": box_mask(np.s_[1:5, 1:7, 1:6], np.s_[5:9, 4, 3]),
    "a checkerboard": np.indices((9, 8, 7)).sum(axis=0) % 2 == 0,
}


@pytest.mark.parametrize("name", ["cubic", "oblique, mirrored, thick slices"])
@pytest.mark.parametrize("mask", AWKWARD.values(), ids=AWKWARD.keys())
def test_nothing_vanishes_and_nothing_is_joined(mask: np.ndarray, name: str) -> None:
    affine = AFFINES[name]
    mesh = mesh_of(mask, affine)
    assert mesh.is_watertight
    # Where all neighbourhoods are ambiguous alike, all turn at one level: the volume jumps.
    assert mesh.volume == pytest.approx(volume_mm3(mask, affine), rel=0.02)
    assert_on_the_right_side_of_every_voxel(mesh, mask, affine)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_a_ragged_mask_has_a_closed_surface(share: float) -> None:
    """Noise holds every neighbourhood, those too that marching cubes can take in two ways."""
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random((12, 11, 10)) < share
        mesh = mesh_of(mask)
        assert mesh.is_watertight
        assert mesh.volume == pytest.approx(volume_mm3(mask), rel=VOLUME)
    assert_on_the_right_side_of_every_voxel(mesh, mask)


def test_each_of_30_lesions_keeps_its_own_volume() -> None:
    # Blocks of 1 to 30 voxels, all apart.
    mask = np.zeros((45, 40, 12), dtype=bool)
    for index in range(30):
        x, y, z = np.unravel_index(index, (5, 6, 1))
        corner = np.s_[9 * x : 9 * x + 5, 6 * y : 6 * y + 3, 4 * z : 4 * z + 2]
        mask[corner] = (np.arange(30) <= index).reshape(5, 3, 2)
    pieces = mesh_of(mask).split()
    expected = cc3d.statistics(cc3d.connected_components(mask, connectivity=26))["voxel_counts"][1:]
    assert len(expected) == 30
    found = sorted(piece.volume for piece in pieces)
    assert found == pytest.approx(sorted(expected.tolist()), rel=VOLUME)


def test_empty_and_wrong_masks() -> None:
    assert region_mesh(np.zeros((4, 4, 4), dtype=bool), affine=CUBIC) is None
    with pytest.raises(ValueError, match="must be a boolean volume"):
        region_mesh(np.ones((4, 4, 4), dtype=np.uint8), affine=CUBIC)
    with pytest.raises(ValueError, match="must be a boolean volume"):
        region_mesh(np.ones((4, 4), dtype=bool), affine=CUBIC)


# ---- Colours ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "regions", "expected"),
    [
        ("WT", REGIONS, 2),
        ("TC", REGIONS, 1),
        ("ET", REGIONS, 3),
        ("ET", {"ET": (3,), "TC": (3, 1)}, 3),
        ("TC", {"ET": (3,), "TC": (3, 1)}, 1),
        ("B", {"A": (1, 2), "B": (2, 3)}, 2),
        ("A", {"A": (1, 2), "B": (2, 1)}, 1),
    ],
)
def test_a_region_has_the_colour_of_what_only_it_holds(
    region: str, regions: dict[str, tuple[int, ...]], expected: int
) -> None:
    assert colour_class(region, regions=regions) == expected


# ---- Files --------------------------------------------------------------------------------------


def nested_classes() -> np.ndarray:
    """Return class indices (X, Y, Z): a ball of core (1) in enhancing (3) in oedema (2)."""
    distances = norm(np.moveaxis(np.indices((30, 28, 26)), 0, -1) - (14, 13, 12))
    return np.select([distances < 5, distances < 8, distances < 12], [1, 3, 2], 0).astype(np.uint8)


def glb_tree(path: Path) -> dict:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 12)
    return json.loads(content[20 : 20 + length])


def to_srgb(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


@in_any_space
def test_files_read_back(tmp_path: Path, affine: np.ndarray) -> None:
    classes = nested_classes()
    files = mesh_files(classes, affine=affine, regions=REGIONS, folder=tmp_path)
    assert files.stl == {region: tmp_path / f"{region}.stl" for region in REGIONS}
    assert files.glb == tmp_path / GLB
    scene = trimesh.load_scene(files.glb)
    for region, members in REGIONS.items():
        mask = np.isin(classes, members)
        expected = mesh_of(mask, affine)
        transform, name = scene.graph[region]
        np.testing.assert_array_equal(transform, np.eye(4))
        for found in (trimesh.load_mesh(files.stl[region]), scene.geometry[name]):
            assert found.is_watertight
            assert found.volume == pytest.approx(expected.volume, rel=1e-5)
            np.testing.assert_allclose(found.bounds, expected.bounds, atol=FLOAT32_MM)
            assert len(found.faces) == len(expected.faces)


def test_the_files_say_where_their_coordinates_are(tmp_path: Path) -> None:
    files = mesh_files(nested_classes(), affine=CUBIC, regions=REGIONS, folder=tmp_path)
    assert files.glb
    extras = glb_tree(files.glb)["asset"]["extras"]
    assert extras["units"] == "mm"
    assert extras["space"].startswith("RAS+")
    header = files.stl["WT"].read_bytes()[:80]
    assert b"SPACE=RAS" in header
    assert not header.startswith(b"solid")  # readers would take it for text


def test_colours_and_opacities(tmp_path: Path) -> None:
    files = mesh_files(nested_classes(), affine=CUBIC, regions=REGIONS, folder=tmp_path)
    assert files.glb
    materials = {one["name"]: one for one in glb_tree(files.glb)["materials"]}
    for region, index in (("WT", 2), ("TC", 1), ("ET", 3)):
        *linear, _ = materials[region]["pbrMetallicRoughness"]["baseColorFactor"]
        # Kept as bytes on the way: one of 255 off, more where sRGB is steep.
        colour = [255 * to_srgb(value) for value in linear]
        np.testing.assert_allclose(colour, CLASS_COLOURS[index], atol=2)
    opacities = [
        materials[region]["pbrMetallicRoughness"]["baseColorFactor"][3] for region in REGIONS
    ]
    assert opacities[0] < opacities[1] < opacities[2] == 1
    modes = [materials[region]["alphaMode"] for region in REGIONS]
    assert modes == ["BLEND", "BLEND", "OPAQUE"]


def test_the_same_mask_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        mesh_files(nested_classes(), affine=CUBIC, regions=REGIONS, folder=tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


def test_empty_regions_have_no_files(tmp_path: Path) -> None:
    classes = nested_classes()
    classes[classes == 3] = 1
    files = mesh_files(classes, affine=CUBIC, regions=REGIONS, folder=tmp_path)
    assert list(files.stl) == ["WT", "TC"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["TC.stl", "WT.stl", GLB]


def test_no_tumour_no_files(tmp_path: Path) -> None:
    files = mesh_files(
        np.zeros((5, 5, 5), dtype=np.uint8), affine=CUBIC, regions=REGIONS, folder=tmp_path
    )
    assert (files.stl, files.glb) == ({}, None)
    assert not list(tmp_path.iterdir())


HOSTILE = (
    "../up",
    "a/b",
    "A:B",
    "a_b",
    "world",
    "<script>",
    "\u202egnp",
    "x" * 300,
    "肿" * 300,
    ".",
)


def test_names_of_regions_are_made_safe(tmp_path: Path) -> None:
    regions = dict.fromkeys(HOSTILE, (1,))
    folder = tmp_path / "meshes"
    folder.mkdir()
    files = mesh_files(nested_classes(), affine=CUBIC, regions=regions, folder=folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert set(files.stl) == set(HOSTILE)
    assert {*files.stl.values(), files.glb} == set(folder.iterdir())
    # On some systems capitals make no difference.
    assert len({path.name.casefold() for path in folder.iterdir()}) == len(HOSTILE) + 1
    assert files.glb
    tree = glb_tree(files.glb)
    nodes = [node["name"] for node in tree["nodes"]]
    assert sorted(nodes) == sorted(path.stem for path in files.stl.values())
    # All beside each other: a viewer that hides one hides no other with it.
    assert len(tree["scenes"][0]["nodes"]) == len(HOSTILE)


def test_all_files_or_none(tmp_path: Path) -> None:
    (tmp_path / GLB).mkdir()  # the last of the files cannot take its name
    with pytest.raises(ResourceError, match=r"regions\.glb: cannot be written"):
        mesh_files(nested_classes(), affine=CUBIC, regions=REGIONS, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [GLB]


# ---- Real masks ---------------------------------------------------------------------------------


@pytest.mark.real
def test_real_tumours(real_cases: Path) -> None:
    files = sorted(real_cases.glob("*/*_seg.nii.gz"))
    assert files
    for file in files[:4]:
        image = nib.load(file)
        values = np.asarray(image.dataobj)
        for members in ((1, 2, 3, 4), (1, 3, 4), (3, 4)):
            mask = np.isin(values, members)
            if not mask.any():
                continue
            mesh = mesh_of(mask, image.affine)
            assert mesh.is_watertight
            assert mesh.volume == pytest.approx(volume_mm3(mask, image.affine), rel=VOLUME)
