"""Random rotation, scaling and bending of a whole case in one resampling, and training patches.

The ranges are those of nnU-Net (Isensee et al., Nature Methods 2021; the transforms of its version
2, nnunetv2 and batchgeneratorsv2), which rotates and scales independently and interpolates once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from transforms.arrays import plain_tensor, with_meta_of
from transforms.patches import (
    BACKGROUND,
    Triple,
    Window,
    background_of,
    chosen_voxel,
    crop,
    place_patch,
    triple,
)
from transforms.slabs import Memory, Slab, memory_of, zeros

# Between the control points of a bending. At 16, the displacement changes by a quarter of its
# standard deviation from one voxel to the next at the most: 3 voxels do not fold the image.
VOXELS_PER_CONTROL_POINT = 16

# Of this size, a piece is computed by torch in one thread, and stays in the cache: waiting for each
# other on a busy machine makes two threads ten times slower.
PIECE_VOXELS = (1 << 15) - 1


@dataclass(frozen=True)
class Deformation:
    """What happens to the content of a volume; angles and factors are those of isotropic voxels.

    Attributes:
        angles_degrees: about X, then Y, then Z. Positive angles about Z turn X towards Y, about X
            turn Y towards Z, about Y turn Z towards X.
        scale: above 1 enlarges.
        elastic_voxels: standard deviation of the displacement of each voxel along each axis.
        elastic_seed: of the displacements, which are the same on every device.
    """

    angles_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    elastic_voxels: float = 0.0
    elastic_seed: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return not any(self.angles_degrees) and self.scale == 1 and self.elastic_voxels == 0

    def to_source(self) -> np.ndarray:
        """Return the matrix (3, 3), float64, from an offset in the result to one in the source."""
        rotation = np.eye(3)
        for axis, degrees in enumerate(self.angles_degrees):
            cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            turn, one, two = np.eye(3), (axis + 1) % 3, (axis + 2) % 3
            turn[one, one] = turn[two, two] = cosine
            turn[one, two], turn[two, one] = -sine, sine
            rotation = turn @ rotation
        return rotation.T / self.scale


def deform(
    image: torch.Tensor,
    labels: Sequence[torch.Tensor],
    *,
    deformation: Deformation,
    window: Window,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return what `window` shows of a deformed volume, about the window's centre.

    A voxel whose nearest source voxel is background in all channels is exactly background, and so
    is what lies outside the volume; see `background_of`.

    Args:
        image: plain (C, X, Y, Z), float32; trilinear.
        labels: plain (K, X, Y, Z) of any dtype, on the image's device; nearest, 0 outside.
        deformation: where the content goes.
        window: which part is computed.
    """
    background = memory_of(background_of(image))
    brain = torch.as_tensor((memory_of(image) != background).any(0))
    # With a rim of one voxel, which is what lies outside.
    around_brain, *around = (memory_of(_with_rim(v)) for v in (brain[None], *labels))
    result = zeros((len(image), *window.size), image.device)
    moved = [zeros((len(label), *window.size), label.device, label.dtype) for label in labels]
    positions_in = _positions(deformation, window, image.device)
    for piece in _pieces(window.size, image.device):
        positions = positions_in(piece)
        nearest = _nearest(positions, image.shape[1:])
        in_all_channels = (slice(None), *nearest)
        for label, source in zip(moved, around, strict=True):
            memory_of(piece.of(label))[...] = source[in_all_channels]
        present = around_brain[0][nearest]
        place = memory_of(piece.of(result))
        place[...] = background
        place[:, present] = memory_of(_trilinear(image, positions, present))
    return result, moved


def _pieces(size: Triple, device: torch.device) -> Iterator[Slab]:
    x, y, z = size
    num_voxels = PIECE_VOXELS if device.type == "cpu" else x * y * z
    return Slab(slice(0, x), slice(0, y)).tiles(depth=z, num_voxels=num_voxels)


def _nearest(positions: Sequence[torch.Tensor], size: Sequence[int]) -> tuple[Memory, ...]:
    """Return the indices X, Y and Z of the nearest voxels in a volume with a rim."""
    return tuple(
        # A whole number is what is left of one that is not negative: torch's `floor_` would wake
        # all threads, whatever the size.
        memory_of((position + 1.5).clamp_(0, length + 1).long())
        for position, length in zip(positions, size, strict=True)
    )


def _trilinear(
    image: torch.Tensor, positions: Sequence[torch.Tensor], present: Memory
) -> torch.Tensor:
    """Return the values (C, N) of `image` at the N positions that are `present`."""
    chosen = [torch.as_tensor(memory_of(position)[present]) for position in positions]
    points = image.new_empty((len(chosen[0]), 3))
    if not len(points):
        return image.new_zeros((len(image), 0))
    for axis, (position, length) in enumerate(zip(chosen, image.shape[1:], strict=True)):
        # Voxels to -1..1 from face to face, and Z first, as torch wants them.
        points[:, 2 - axis] = (position * 2 + 1) / length - 1
    values = F.grid_sample(
        image[None], points[None, None, None], padding_mode="border", align_corners=False
    )
    return values[0, :, 0, 0]


def _with_rim(volume: torch.Tensor) -> torch.Tensor:
    """Return `volume` (C, X, Y, Z) with a voxel of 0 around it."""
    x, y, z = volume.shape[1:]
    return crop(volume, window=Window((-1, -1, -1), (x + 2, y + 2, z + 2)))


def _positions(
    deformation: Deformation, window: Window, device: torch.device
) -> Callable[[Slab], list[torch.Tensor]]:
    """Return what says where the voxels of a piece of the window lie in the source.

    It returns X, Y and Z in voxels, float32, of the piece's shape each.
    """
    matrix = deformation.to_source()
    offsets = [np.arange(length) - (length - 1) / 2 for length in window.size]
    centre = [start + (edge - 1) / 2 for start, edge in zip(window.start, window.size, strict=True)]
    # Each along its own axis: only their sum is as large as the piece.
    along = [
        [
            torch.from_numpy(matrix[axis, other] * offsets[other]).to(device, torch.float32)
            for other in range(3)
        ]
        for axis in range(3)
    ]
    displacements = _displacements(deformation, window.size, device)

    def positions_in(piece: Slab) -> list[torch.Tensor]:
        positions = [
            (x[piece.planes, None, None] + centre[axis]) + (y[piece.rows, None] + z)
            for axis, (x, y, z) in enumerate(along)
        ]
        if displacements is not None:
            for position, displacement in zip(positions, piece.of(displacements), strict=True):
                position += displacement
        return positions

    return positions_in


def _displacements(
    deformation: Deformation, size: Triple, device: torch.device
) -> torch.Tensor | None:
    """Return smooth random displacements (3, X, Y, Z) in voxels, or None without bending.

    Cubic B-splines through a coarse grid of Gaussian vectors, scaled to the same standard deviation
    at every voxel.
    """
    if deformation.elastic_voxels == 0:
        return None
    along_x, along_y, along_z = (_spline_weights(length).to(device) for length in size)
    coarse_size = [weights.shape[1] for weights in (along_x, along_y, along_z)]
    drawn = np.random.RandomState(deformation.elastic_seed).standard_normal((3, *coarse_size))
    coarse = torch.from_numpy(drawn * deformation.elastic_voxels).to(device, torch.float32)
    planes = along_y @ (coarse @ along_z.T)
    return (along_x @ planes.flatten(2)).reshape(3, *size)


def _spline_weights(length: int) -> torch.Tensor:
    """Return the weights (length, control points) of unit sum of squares at each voxel."""
    place = np.arange(length) / VOXELS_PER_CONTROL_POINT
    control = np.arange(-1, int(place[-1]) + 3)
    distance = np.abs(place[:, None] - control)
    inner, outer = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
    weights = np.where(distance < 1, inner, np.where(distance < 2, outer, 0.0))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return torch.from_numpy(weights).float()


class RandDeformedd(Randomizable, MapTransform):
    """Rotate, scale and bend a case at random, and cut a patch from it, in one resampling.

    Each call draws the same number of random numbers, whatever comes of them. A call that draws no
    deformation copies the patch without resampling, or returns the volumes themselves. With
    `patch_size`, the background of the whole image is left under the key `BACKGROUND`: the patch
    may hold none of it.

    Args:
        keys: the image (C, X, Y, Z), which becomes float32, then any labels on its grid.
        probability: of a rotation, and independently of it, of a scaling.
        rotation_degrees: the angle about each axis is uniform in ± this.
        scale: at least 1; the factor is log-uniform in [1 / scale, scale].
        elastic_probability: of a bending.
        elastic_voxels: its standard deviation is uniform in [0, elastic_voxels].
        patch_size: X, Y and Z in voxels; None keeps the size of the volume. A smaller volume is
            padded on both sides.
        foreground_probability: that a patch lies about a random voxel of the first label that is
            above 0, as far as the volume's faces allow, and not just anywhere in the volume.

    Raises:
        ValueError: `scale` is below 1, `patch_size` has not three positive edges, or the volumes
            of a case are not on one grid (C, X, Y, Z).
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        probability: float = 0.2,
        rotation_degrees: float = 30.0,
        scale: float = 1.4,
        elastic_probability: float = 0.0,
        elastic_voxels: float = 2.0,
        patch_size: Sequence[int] | None = None,
        foreground_probability: float = 0.33,
    ) -> None:
        super().__init__(keys)
        if scale < 1:
            raise ValueError(f"scale must be at least 1; found {scale}")
        if patch_size is not None and (len(patch_size) != 3 or min(patch_size) < 1):
            raise ValueError(f"patch_size must be three positive edges; found {patch_size!r}")
        self.probability = probability
        self.rotation_degrees = rotation_degrees
        self.scale = scale
        self.elastic_probability = elastic_probability
        self.elastic_voxels = elastic_voxels
        self.patch_size = patch_size
        self.foreground_probability = foreground_probability
        self.deformation = Deformation()
        self.is_at_foreground = False
        self.place = (0.0, 0.0, 0.0, 0.0)

    def randomize(self, data: Any = None) -> None:
        """Draw the deformation, and where the patch lies."""
        turns, scales, bends, at_foreground = self.R.random_sample(4) < (
            self.probability,
            self.probability,
            self.elastic_probability,
            self.foreground_probability,
        )
        x, y, z, exponent = self.R.uniform(-1, 1, 4).tolist()
        elastic_voxels = self.R.uniform(0, self.elastic_voxels)
        elastic_seed = int(self.R.randint(2**31))
        self.deformation = Deformation(
            angles_degrees=(
                x * self.rotation_degrees * turns,
                y * self.rotation_degrees * turns,
                z * self.rotation_degrees * turns,
            ),
            scale=self.scale**exponent if scales else 1.0,
            elastic_voxels=elastic_voxels if bends else 0.0,
            elastic_seed=elastic_seed,
        )
        self.is_at_foreground = bool(at_foreground)
        self.place = tuple(self.R.random_sample(4).tolist())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the volumes at the keys deformed, or cut."""
        result = dict(data)
        self.randomize()
        if self.patch_size is None and self.deformation.is_identity:
            return result
        image, *labels = self._volumes(result)
        image = image.float()
        window = self._window(image, labels)
        if self.deformation.is_identity:
            shown = crop(image, window=window, background=background_of(image))
            labels = [crop(label, window=window) for label in labels]
        else:
            shown, labels = deform(image, labels, deformation=self.deformation, window=window)
        for key, volume in zip(self.keys, (shown, *labels), strict=True):
            result[key] = with_meta_of(data[key], volume)
        if self.patch_size is not None:
            result[BACKGROUND] = background_of(image)
        return result

    def _volumes(self, data: Mapping[Hashable, Any]) -> list[torch.Tensor]:
        volumes = [plain_tensor(data[key]) for key in self.key_iterator(data)]
        sizes = {tuple(volume.shape[1:]) for volume in volumes}
        if len(sizes) != 1 or volumes[0].ndim != 4:
            found = {key: tuple(data[key].shape) for key in self.keys}
            raise ValueError(f"expected volumes (C, X, Y, Z) on one grid; found {found}")
        return volumes

    def _window(self, image: torch.Tensor, labels: Sequence[torch.Tensor]) -> Window:
        """Return the window of this call's draws: the whole volume, or where the patch lies."""
        size = image.shape[1:]
        if self.patch_size is None:
            return Window((0, 0, 0), triple(size))
        which, *place = self.place
        about = chosen_voxel(labels[0], which) if self.is_at_foreground and labels else None
        return place_patch(size, self.patch_size, place=place, about=about)
