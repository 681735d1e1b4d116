"""What the viewer shows of a case: cropped to the brain, a byte a voxel, small enough to inline.

Pictures are WebP, which loses what the eye does not miss; masks lose nothing. Both keep the case's
own voxels and orientation, so that a place in the viewer is the place in the scanner.
"""

from __future__ import annotations

import base64
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.boxes import bounding_box
from pipeline.data.slices import grey_levels

# Voxels around the brain and all masks.
MARGIN = 4
WEBP_QUALITY = 80


@dataclass(frozen=True)
class Crop:
    """A box of a case's grid.

    Attributes:
        box: slices of X, Y and Z.
        affine: (4, 4), from the box's own voxel indices to RAS+ mm.
    """

    box: tuple[slice, slice, slice]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z) of the box."""
        return tuple(part.stop - part.start for part in self.box)


def crop_of(volumes: Sequence[np.ndarray], *, affine: np.ndarray) -> Crop:
    """Return the box of all that is not 0 in any of `volumes` (X, Y, Z), with a margin.

    It is the whole grid where there is nothing but zeros.
    """
    shape = volumes[0].shape
    inside = bounding_box(np.any([np.nan_to_num(volume) != 0 for volume in volumes], axis=0))
    if inside[0].stop == 0:
        inside = tuple(slice(0, edge) for edge in shape)
    x, y, z = (
        slice(max(part.start - MARGIN, 0), min(part.stop + MARGIN, edge))
        for part, edge in zip(inside, shape, strict=True)
    )
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] = (moved @ [x.start, y.start, z.start, 1])[:3]
    return Crop((x, y, z), moved)


def picture(volume: np.ndarray) -> dict[str, Any]:
    """Return uint8 (X, Y, Z) as a mosaic of its axial slices: WebP in base64, and how to cut it."""
    size_x, size_y, size_z = volume.shape
    columns = math.ceil(math.sqrt(size_z * size_x / size_y)) or 1
    columns = min(max(columns, 1), size_z)
    rows = math.ceil(size_z / columns)
    mosaic = np.zeros((rows, columns, size_y, size_x), dtype=np.uint8)
    mosaic.reshape(-1, size_y, size_x)[:size_z] = volume.transpose(2, 1, 0)
    image = Image.fromarray(mosaic.transpose(0, 2, 1, 3).reshape(rows * size_y, columns * size_x))
    stream = io.BytesIO()
    image.save(stream, format="WEBP", quality=WEBP_QUALITY, method=4)
    return {"webp": _text(stream.getvalue()), "columns": columns}


def exact(volume: np.ndarray) -> dict[str, Any]:
    """Return uint8 (X, Y, Z) without loss: gzip in base64, X runs fastest."""
    packed = gzip.compress(volume.tobytes(order="F"), compresslevel=9, mtime=0)
    return {"gzip": _text(packed)}


def viewer_payload(
    *,
    images: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    affine: np.ndarray,
) -> dict[str, Any]:
    """Return what the viewer gets of a case, as plain JSON values.

    Args:
        images: modality -> (X, Y, Z), any range; may be empty.
        masks: "truth" and "prediction", what there is -> class indices, uint8 (X, Y, Z).
        maps: name -> (X, Y, Z), from 0 to 1: so that the cases' colours mean the same.
        affine: (4, 4), voxel indices to RAS+ mm.
    """
    crop = crop_of([*images.values(), *masks.values()], affine=affine)
    return {
        "shape": list(crop.shape),
        "affine": crop.affine.tolist(),
        "images": {name: picture(grey_levels(each[crop.box])) for name, each in images.items()},
        "masks": {
            name: exact(each[crop.box].astype(np.uint8, copy=False)) for name, each in masks.items()
        },
        "maps": {name: picture(_shares(each[crop.box])) for name, each in maps.items()},
    }


def _shares(volume: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(np.nan_to_num(volume), 0, 1)).astype(np.uint8)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
