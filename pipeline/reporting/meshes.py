"""The surfaces of a case's regions as triangle meshes: STL for each region, one GLB with all.

Vertices are in the scanner's RAS+ millimetres, as everything else about a case is: x to the
patient's right, y to the front, z up. glTF asks for metres with y up; a mesh of a tumour is laid
over its images, and moved for the convention's sake it would fit none of them. The GLB says so in
its asset's `extras`, the STL files in their headers, where 3D Slicer looks for it.

A mask's own surface is a staircase. Each of its 26-connected components is smoothed by itself, and
the surface is taken at the level where it holds as much as the voxels: a lesion of one voxel keeps
its volume beside a large one. Smoothing may move the surface between two voxels, never past a
voxel's centre: the centres of the mask's voxels lie inside, all others outside. So nothing
vanishes, however thin, no two lesions are joined, and the mesh is closed without repairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import trimesh
from nibabel.affines import voxel_sizes
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from skimage.measure import marching_cubes
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.stl import export_stl
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from pipeline.data.colours import colours_of
from pipeline.data.files import replace_files
from pipeline.data.naming import safe_case_id

GLB = "regions.glb"
COORDINATES = {"units": "mm", "space": "RAS+: x to the patient's right, y to the front, z up"}

# Standard deviation of the smoothing, in mm the same along all axes, in longest sides of a voxel:
# less leaves the steps between thick slices, more makes walls of one voxel thinner.
_SMOOTHING = 0.85
# How far voxels stay from the surface's value of 0, for a smoothing of one voxel; the wider it is,
# the less do values change between neighbours. Inside and outside must differ, or marching cubes
# meets ties where voxels touch at edges, decides them differently on either side, and leaves holes.
_MARGIN_INSIDE, _MARGIN_OUTSIDE = 0.07, 0.056
# Between these levels a surface goes from too large to too small for any mask.
_LOWEST_LEVEL, _HIGHEST_LEVEL = -1.0, 2.0
_LEVEL_TOLERANCE = 1e-3  # far less than 0.5 % of the volume of anything
_LONGEST_NAME = 40  # characters of a file's name, each up to 4 bytes of a system's 255
_FAINTEST = 0.2
_STL_HEADER_BYTES = 80

_Vertices = np.ndarray
_Faces = np.ndarray
Regions = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class MeshFiles:
    """The files of one case's meshes: an STL for each region that is not empty, and the GLB.

    `glb` is None where all regions are empty.
    """

    stl: dict[str, Path]
    glb: Path | None


def region_mesh(mask: np.ndarray, *, affine: np.ndarray) -> trimesh.Trimesh | None:
    """Return the surface of a mask, or None of an empty one.

    The mesh is watertight, its normals point outwards, and it holds the volume of the voxels.

    Args:
        mask: Boolean, (X, Y, Z); may touch the border of the volume.
        affine: (4, 4), voxel -> RAS+ mm, of any orientation. The vertices are in these mm.

    Raises:
        ValueError: The mask is not boolean, or not a volume.
    """
    if mask.dtype != np.bool_ or mask.ndim != 3:
        raise ValueError(
            f"mask must be a boolean volume (X, Y, Z), not {mask.dtype} of {mask.shape}"
        )
    if not mask.any():
        return None
    spacing_mm = voxel_sizes(affine)
    sigma_voxels = _SMOOTHING * spacing_mm.max() / spacing_mm
    labels = cc3d.connected_components(mask, connectivity=26)
    boxes = cc3d.statistics(labels)["bounding_boxes"]
    pieces = []
    for label in range(1, len(boxes)):
        box = boxes[label]
        vertices, faces = _surface(labels[box] == label, sigma_voxels)
        pieces.append((vertices + [side.start for side in box], faces))
    mesh = trimesh.Trimesh(*_joined(pieces), process=False)
    # Where the affine mirrors, this turns the triangles round.
    return mesh.apply_transform(affine)


def mesh_files(
    classes: np.ndarray, *, affine: np.ndarray, regions: Regions, folder: Path
) -> MeshFiles:
    """Write the meshes of one mask: `<region>.stl` in binary, and `regions.glb` with all regions.

    In the GLB each region has the colour of `colour_class` and is a node of its own; those that
    hold others are translucent. Nodes and files have the regions' names, made safe. Either all
    files are written or none is; of a mask without any region, none.

    Args:
        classes: Class indices, (X, Y, Z).
        affine: (4, 4), voxel -> RAS+ mm.
        regions: The class indices that each region unites.
        folder: An existing folder.

    Raises:
        ResourceError: A file cannot be written.
    """
    meshes = {}
    for region, members in regions.items():
        mask = np.isin(classes, np.asarray(members, dtype=classes.dtype))
        mesh = region_mesh(mask, affine=affine)
        if mesh is not None:
            meshes[region] = mesh
    if not meshes:
        return MeshFiles({}, None)
    names = _safe_names(regions)
    stl = {region: f"{names[region]}.stl" for region in meshes}
    contents = {stl[region]: _stl_bytes(mesh) for region, mesh in meshes.items()}
    contents[GLB] = _glb_bytes(meshes, regions=regions, names=names)
    replace_files(folder, contents)
    return MeshFiles({region: folder / name for region, name in stl.items()}, folder / GLB)


def mesh_names(regions: Iterable[str]) -> list[str]:
    """Return the names of all files that `mesh_files` may write, whatever the mask."""
    return [GLB, *(f"{name}.stl" for name in _safe_names(regions).values())]


def colour_class(region: str, *, regions: Regions) -> int:
    """Return the class whose colour a region's surface takes.

    Regions are nested, and what one sees of a region between its own surface and that of the next
    smaller one is what only it holds: of the whole tumour the oedema, of the tumour core the
    necrotic core. It is the first class that the region has and the largest region inside it has
    not.
    """
    members = regions[region]
    largest = max(_regions_inside(region, regions), key=len, default=set())
    return next(index for index in members if index not in largest)


def _regions_inside(region: str, regions: Regions) -> list[set[int]]:
    """Return the regions that are a part of a region, and not all of it."""
    members = set(regions[region])
    return [set(others) for others in regions.values() if set(others) < members]


def _surface(mask: np.ndarray, sigma_voxels: np.ndarray) -> tuple[_Vertices, _Faces]:
    """Return the surface of one component, in the voxels of its box."""
    padded = np.pad(mask, 1)
    smooth = gaussian_filter(padded.astype(np.float32), sigma_voxels, mode="constant")
    sign = np.where(padded, np.float32(1), np.float32(-1))
    margin = np.where(padded, _MARGIN_INSIDE, _MARGIN_OUTSIDE) / sigma_voxels.max()
    num_voxels = np.count_nonzero(mask)

    def surface_at(level: float) -> tuple[_Vertices, _Faces]:
        # Where `smooth` has this level, but no further than the voxels allow.
        field = sign * np.maximum(sign * (smooth - level), margin)
        # scikit-image goes by the left hand: with "descent", normals point to the high values.
        vertices, faces, _, _ = marching_cubes(field, 0.0, gradient_direction="ascent")
        return vertices.astype(np.float64), faces

    def surplus(level: float) -> float:
        return _volume(*surface_at(level)) - num_voxels

    level = brentq(surplus, _LOWEST_LEVEL, _HIGHEST_LEVEL, xtol=_LEVEL_TOLERANCE)
    vertices, faces = surface_at(level)
    return vertices - 1, faces


def _volume(vertices: _Vertices, faces: _Faces) -> float:
    """Return what a closed surface holds: the tetrahedra between its triangles and the origin."""
    first, second, third = (vertices[faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->", first, np.cross(second, third)) / 6)


def _joined(pieces: Iterable[tuple[_Vertices, _Faces]]) -> tuple[_Vertices, _Faces]:
    """Return several surfaces as one."""
    all_vertices, all_faces, num_vertices = [], [], 0
    for vertices, faces in pieces:
        all_vertices.append(vertices)
        all_faces.append(faces + num_vertices)
        num_vertices += len(vertices)
    return np.concatenate(all_vertices), np.concatenate(all_faces)


def _stl_bytes(mesh: trimesh.Trimesh) -> bytes:
    """Return a mesh as binary STL; the header tells 3D Slicer, which expects LPS, of RAS."""
    return (
        b"Units: mm. SPACE=RAS".ljust(_STL_HEADER_BYTES, b"\0")
        + export_stl(mesh)[_STL_HEADER_BYTES:]
    )


def _glb_bytes(
    meshes: Mapping[str, trimesh.Trimesh], *, regions: Regions, names: Mapping[str, str]
) -> bytes:
    """Return all regions as one GLB, the inner ones first: some viewers draw in this order."""
    scene = trimesh.Scene(base_frame="/")  # no region's safe name
    for region in sorted(meshes, key=lambda region: len(regions[region])):
        mesh, name = meshes[region].copy(), names[region]
        mesh.visual = TextureVisuals(material=_material(region, regions=regions, name=name))
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    return export_glb(scene, include_normals=True, tree_postprocessor=_state_coordinates)


def _state_coordinates(tree: dict[str, Any]) -> None:
    tree["asset"]["extras"] = COORDINATES


def _material(region: str, *, regions: Regions, name: str) -> PBRMaterial:
    num_inside = len(_regions_inside(region, regions))
    opacity = max(0.5**num_inside, _FAINTEST)
    colour = _linear(colours_of(colour_class(region, regions=regions)) / 255)
    return PBRMaterial(
        name=name,
        baseColorFactor=[*colour, opacity],
        metallicFactor=0.0,
        roughnessFactor=0.7,
        alphaMode="BLEND" if num_inside else "OPAQUE",
    )


def _linear(srgb: np.ndarray) -> np.ndarray:
    """Return sRGB values of 0 to 1 as the linear ones in which glTF states its factors."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _safe_names(regions: Iterable[str]) -> dict[str, str]:
    """Return names that can name files, on systems too that take capitals for small letters."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for region in regions:
        stem = safe_case_id(region[:_LONGEST_NAME])
        candidates = chain([stem], (f"{stem}_{number}" for number in count(2)))
        names[region] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(names[region].casefold())
    return names
