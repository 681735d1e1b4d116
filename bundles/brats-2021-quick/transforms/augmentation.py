"""The random chain of training, whose randomness is a function of (seed, epoch, index) alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    MapTransform,
    RandomizableTransform,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Transform,
)
from monai.utils import ensure_tuple_rep

from transforms.appearance import RandAppearanced
from transforms.arrays import Volume, plain_tensor, with_meta_of
from transforms.deformation import RandDeformedd
from transforms.slabs import Slab, Spans, memory_of, nonzero_rows, zeros

Mode = Literal["bilinear", "nearest"]
MODES = ("bilinear", "nearest")
# Few stay in the cache, many cost fewer calls: measured with 224 rows of 144 voxels.
PLANES_AT_ONCE = 4


def seed_of(seed: int, epoch: int, index: int) -> int:
    """Return the 32-bit seed of one sample's randomness, by NumPy's SeedSequence.

    Args:
        seed: of the run; not negative, like the others.
        epoch: counted from 0.
        index: of the case in the training set.
    """
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint32)[0])


def rotate_in_plane(volume: Volume, *, degrees: float, mode: Mode) -> torch.Tensor:
    """Rotate every slice of `volume` (C, X, Y, Z) about its centre by the same angle.

    Positive degrees turn the X axis towards the Y axis, in voxels. The grid and with it the
    affine stay as they are: the content is what turns. Outside, the nearest edge voxel is
    repeated.

    Args:
        volume: any real dtype; it is not changed.
        degrees: the angle.
        mode: "bilinear" (float32 out) or "nearest" (same dtype out).

    Returns:
        A tensor of the same shape; a MetaTensor, with its metadata, if `volume` is one.

    Raises:
        ValueError: if `mode` is none of these or `volume` has not 4 dimensions.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}; found {mode!r}")
    plain = plain_tensor(volume)
    if plain.ndim != 4:
        raise ValueError(f"a volume must be (C, X, Y, Z); found shape {tuple(plain.shape)}")
    x, y = _source_positions(plain.shape[1], plain.shape[2], degrees, plain.device)
    rotated = _nearest(plain, x, y) if mode == "nearest" else _bilinear(plain.float(), x, y)
    return with_meta_of(volume, rotated)


def _source_positions(
    size_x: int, size_y: int, degrees: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each voxel (X, Y) of the result lies in the source, clamped to the slice.

    In float64, so that the angle 0 is the identity and 90 degrees hit the voxels.
    """
    angle = math.radians(degrees)
    centre_x, centre_y = (size_x - 1) / 2, (size_y - 1) / 2
    x = torch.arange(size_x, dtype=torch.float64, device=device)[:, None] - centre_x
    y = torch.arange(size_y, dtype=torch.float64, device=device)[None, :] - centre_y
    source_x = math.cos(angle) * x + math.sin(angle) * y + centre_x
    source_y = math.cos(angle) * y - math.sin(angle) * x + centre_y
    return source_x.clamp_(0, size_x - 1), source_y.clamp_(0, size_y - 1)


def _columns(volume: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the columns along Z (C, X, Y, Z) at the voxel indices `x` and `y`, each (X, Y).

    A column is contiguous memory, the same for all slices: that is what makes this quick.
    """
    channels, size_x, size_y, size_z = volume.shape
    index = (x * size_y + y).flatten()
    columns = volume.reshape(channels, size_x * size_y, size_z).index_select(1, index)
    return columns.reshape(volume.shape)


def _nearest(volume: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _columns(volume, (x + 0.5).floor().long(), (y + 0.5).floor().long())


def _bilinear(volume: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean of the four columns around each position, weighted by nearness.

    Where all four are 0 in all channels, nothing is computed.
    """
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp_(max=volume.shape[1] - 1), (y0 + 1).clamp_(max=volume.shape[2] - 1)
    right, up = x - x0, y - y0
    corners = [
        (memory_of(corner_x * volume.shape[2] + corner_y), memory_of(weight.float()[..., None]))
        for corner_x, corner_y, weight in (
            (x0, y0, (1 - right) * (1 - up)),
            (x1, y0, right * (1 - up)),
            (x0, y1, (1 - right) * up),
            (x1, y1, right * up),
        )
    ]
    present = nonzero_rows(volume).to(volume.device).flatten()
    needed = torch.stack([present[torch.as_tensor(index)] for index, _ in corners]).any(0).cpu()
    result = zeros(volume.shape, volume.device)
    for slab in _slabs(Spans.of(needed), len(needed), volume.device):
        for channel, out in zip(memory_of(volume), memory_of(result), strict=True):
            columns, place = channel.reshape(-1, volume.shape[3]), slab.of(out)
            for number, (index, weight) in enumerate(corners):
                around = columns[index[slab.planes, slab.rows]]
                around *= weight[slab.planes, slab.rows]
                if number == 0:
                    place[...] = around
                else:
                    place += around
    return result


def _slabs(spans: Spans, num_planes: int, device: torch.device) -> Iterator[Slab]:
    """Yield the planes with something, few at a time on a CPU: they stay in the cache."""
    size = PLANES_AT_ONCE if device.type == "cpu" else num_planes
    for start in range(0, num_planes, size):
        slab = spans.over(slice(start, min(start + size, num_planes)))
        if slab.num_rows:
            yield slab


class RandInPlaneRotated(RandomizableTransform, MapTransform):
    """Rotate all keys in the plane by one random angle: the article's `rotation_range`.

    Args:
        keys: keys of volumes (C, X, Y, Z) on one grid.
        degrees: the angle is uniform in [-degrees, degrees].
        modes: of `rotate_in_plane`, one for all keys or one for each.
        prob: probability of a rotation.
        allow_missing_keys: skip a key that the data lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        degrees: float,
        modes: Mode | Sequence[Mode] = "bilinear",
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.degrees = degrees
        self.modes = ensure_tuple_rep(modes, len(self.keys))
        self.angle_degrees = 0.0

    def randomize(self, data: Any = None) -> None:
        """Draw whether to rotate, and the angle; both always, so that later draws stay put."""
        super().randomize(data)
        self.angle_degrees = self.R.uniform(-self.degrees, self.degrees)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` in which the volumes at the keys are rotated."""
        result = dict(data)
        self.randomize()
        if self._do_transform:
            for key, mode in self.key_iterator(result, self.modes):
                result[key] = rotate_in_plane(result[key], degrees=self.angle_degrees, mode=mode)
        return result


class RandMirrored(RandomizableTransform, MapTransform):
    """Mirror all keys along one axis; the affine stays as it is, as with `rotate_in_plane`.

    It draws as MONAI's `RandFlipd` does, and takes a quarter of its time.

    Args:
        keys: keys of volumes (C, X, Y, Z) on one grid.
        axis: spatial axis, X = 0.
        prob: probability of the mirroring.
    """

    def __init__(self, keys: KeysCollection, *, axis: int, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.axis = axis

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` in which the volumes at the keys are mirrored."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.key_iterator(result):
                result[key] = _mirrored(result[key], self.axis + 1)
        return result


def _mirrored(volume: Volume, dimension: int) -> torch.Tensor:
    """Return `volume` with the order along a dimension reversed."""
    plain = plain_tensor(volume)
    if plain.device.type == "cpu":
        # NumPy asks for large pages: torch's copy takes four times as long.
        mirrored = torch.from_numpy(np.flip(plain.numpy(), dimension).copy())
    else:
        mirrored = plain.flip(dimension)
    return with_meta_of(volume, mirrored)


def build_augmentation(
    *,
    keys: Sequence[str] = ("image", "label"),
    rotation_degrees: float = 20.0,
    rotation_probability: float = 1.0,
    flip_axes: Sequence[int] = (0, 1),
    flip_probability: float = 0.5,
    intensity_scale: float = 0.0,
    intensity_shift: float = 0.0,
    deformation: Mapping[str, Any] | None = None,
    appearance: Mapping[str, Any] | None = None,
) -> Compose:
    """Return the random chain; seed it for each sample with `seed_of`.

    Call ``chain.set_random_state(seed=seed_of(seed, epoch, index))`` before each sample. Its order:
    deformation and patch, in-plane rotation, mirroring, appearance, scale and shift, which come
    last because they move the background.

    Args:
        keys: the image, then any labels (rotated without interpolation), (C, X, Y, Z).
        rotation_degrees: see `RandInPlaneRotated`; 0 does not rotate.
        rotation_probability: of a rotation.
        flip_axes: spatial axes, X = 0, each flipped independently.
        flip_probability: of a flip along each of them.
        intensity_scale: the image is multiplied by 1 + uniform in [-scale, scale].
        intensity_shift: to the image is added a number uniform in [-shift, shift].
        deformation: arguments of `RandDeformedd`; None, like probabilities of 0 without a patch,
            does nothing.
        appearance: arguments of `RandAppearanced`; None, like probabilities of 0, does nothing.
    """
    image_key, *label_keys = keys
    steps: list[Transform] = []
    if deformation is not None and _deforms(deformation):
        steps.append(RandDeformedd(keys, **deformation))
    if rotation_degrees > 0 and rotation_probability > 0:
        modes: list[Mode] = ["bilinear"]
        modes += ["nearest"] * len(label_keys)
        steps.append(
            RandInPlaneRotated(
                keys, degrees=rotation_degrees, modes=modes, prob=rotation_probability
            )
        )
    if flip_probability > 0:
        steps += [RandMirrored(keys, axis=axis, prob=flip_probability) for axis in flip_axes]
    if appearance is not None and _has_probability(appearance):
        steps.append(RandAppearanced([image_key], **appearance))
    if intensity_scale > 0:
        steps.append(RandScaleIntensityd([image_key], factors=intensity_scale, prob=1.0))
    if intensity_shift > 0:
        steps.append(RandShiftIntensityd([image_key], offsets=intensity_shift, prob=1.0))
    return Compose(steps)


def _deforms(deformation: Mapping[str, Any]) -> bool:
    """Return whether arguments of `RandDeformedd` leave it anything to do."""
    moving = {name: deformation[name] for name in deformation if name != "foreground_probability"}
    return deformation.get("patch_size") is not None or _has_probability(moving)


def _has_probability(step: Mapping[str, Any]) -> bool:
    return any(value > 0 for name, value in step.items() if name.endswith("probability"))
