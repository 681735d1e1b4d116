"""Puts one phantom together: head, tumour, tissue, images and label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.naming import LABEL_NAMES, MODALITY_SPELLINGS
from pipeline.data.phantom_anatomy import tissue_shares
from pipeline.data.phantom_fields import Field, Grid, coarse, smooth_noise
from pipeline.data.phantom_head import (
    BRAIN_CENTRE_MM,
    BRAIN_EXTENT_MM,
    Bodies,
    Head,
    bodies,
    roughened,
)
from pipeline.data.phantom_signal import (
    bias_field,
    rician,
    signal,
    thick_slices,
    varied,
)
from pipeline.data.phantom_tumour import Mask, Traits, displaced, draw_glioma, grow, invade
from pipeline.errors import SettingsError

MODALITIES = tuple(MODALITY_SPELLINGS)
# BraTS's own values; consecutive class indices are made of them by the pipeline.
LABEL_VALUES = dict(zip(LABEL_NAMES, (0, 1, 2, 4), strict=True))
MIN_SIZE = 24
SPACING_RANGE_MM = (0.5, 8.0)
# Voxels larger than this are averaged from smaller ones: sulci would be lost between them.
COARSEST_MM = 3.4
BLOCK = 5  # of every five cases in a row one does not enhance, and one lies at the brain's edge


@dataclass(frozen=True)
class Phantom:
    """One case on one grid, all (X, Y, Z), LPS: `images` by modality, `label` of 0, 1, 2 and 4.

    `affine`, (4, 4), maps voxels to millimetres in RAS, as nibabel has it.
    """

    images: dict[str, npt.NDArray[np.int16]]
    label: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """How the head lies in its box."""

    fine: Grid  # on which the head is made; covers the head only
    factor: int  # voxels of `fine` per voxel of the case, along each axis
    window: tuple[slice, slice, slice]  # what `fine` covers of the case

    def coarse_grid(self) -> Grid:
        """Return the grid of the case inside the window."""
        x, y, z = (axis.reshape(-1, self.factor).mean(axis=1) for axis in self.fine.axes_mm)
        return Grid((x, y, z), self.fine.voxel_mm * self.factor)


def make_phantom(
    *, shape: tuple[int, int, int], spacing_mm: float, seed: int, index: int
) -> Phantom:
    """Return case `index` of the cohort `seed`; the size of the cohort plays no part.

    A head too large for `shape` voxels of `spacing_mm` is scaled down to fit, its tumour too. The
    same arguments give the same bytes. Of every five cases in a row one has no enhancing tumour and
    one lies at the edge of the brain; about one in ten has satellites.

    Raises SettingsError for a `shape` or `spacing_mm` out of range, or a negative number.
    """
    check_settings(shape=shape, spacing_mm=spacing_mm, seed=seed, index=index)
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    head = Head.draw(rng)
    frame = _frame(shape, spacing_mm, head)
    grid, points = frame.fine, frame.fine.points()
    stretch = np.array(head.stretch, np.float32)[:, None, None, None]
    outer = roughened(rng, grid, bodies(points / stretch))
    glioma = draw_glioma(rng, head, _traits(seed, index))
    before, swelling = displaced(points, glioma)
    shares = tissue_shares(rng, grid, before / stretch, outer, head, swelling)
    masks = grow(rng, grid, points, glioma, shares, outer.cerebrum)
    shares = invade(rng, grid, glioma, masks, shares)
    brain = coarse(_brain(rng, grid, outer, shares), factor=frame.factor) > 0.5
    label = _label(masks, frame.factor) * brain
    images = {name: image * brain for name, image in _images(rng, frame, shares, brain).items()}
    return Phantom(
        images={name: _in_box(image, shape, frame.window) for name, image in images.items()},
        label=_in_box(label, shape, frame.window),
        affine=_affine(shape, spacing_mm),
    )


def check_settings(
    *, shape: tuple[int, int, int], spacing_mm: float, seed: int, index: int = 0
) -> None:
    """Raise SettingsError, naming the range, where a phantom cannot be made so."""
    low, high = SPACING_RANGE_MM
    if not low <= spacing_mm <= high:
        raise SettingsError(f"spacing {spacing_mm} mm: expected {low} to {high} mm")
    if len(shape) != 3 or min(shape) < MIN_SIZE:
        raise SettingsError(f"shape {shape}: expected three sizes of at least {MIN_SIZE} voxels")
    if seed < 0 or index < 0:
        raise SettingsError(f"seed {seed}, case {index}: expected numbers from 0 on")


def _traits(seed: int, index: int) -> Traits:
    """Return the kind of case `index`: drawn per block, so that even a small cohort has its mix."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, index // BLOCK, BLOCK)))
    low_grade, at_edge = rng.permutation(BLOCK)[:2]
    multifocal, num_satellites = rng.integers(0, 2 * BLOCK), int(rng.integers(1, 3))
    place = index % BLOCK
    return Traits(
        enhancing=bool(place != low_grade),
        at_edge=bool(place == at_edge),
        num_satellites=num_satellites if place == multifocal else 0,
    )


def average_frame(shape: tuple[int, int, int], spacing_mm: float) -> Frame:
    """Return the frame of an average head: what time, memory and disk grow with."""
    average = Head((0.96, 0.96, 0.96), fissure_mm=0.6, sulcus_mm=0.4, ventricle=1, gliosis=0)
    return _frame(shape, spacing_mm, average)


def _frame(shape: tuple[int, int, int], spacing_mm: float, head: Head) -> Frame:
    """Centre the head in its box, scaled down if need be, and choose the grid to make it on."""
    margin_mm = 4.0
    extent_mm = np.array(BRAIN_EXTENT_MM) * head.stretch + margin_mm
    centre_mm = np.array(BRAIN_CENTRE_MM) * head.stretch
    scale = min(1.0, float(((np.array(shape) - 2) * spacing_mm / extent_mm).min()))
    voxel_mm = spacing_mm / scale
    factor = int(np.ceil(voxel_mm / COARSEST_MM))
    axes, window = [], []
    for size, extent, centre in zip(shape, extent_mm, centre_mm, strict=True):
        covered = min(size, int(np.ceil(extent / voxel_mm)) + 2)
        start = (size - covered) // 2
        fine = (np.arange(covered * factor) + 0.5) / factor + start - size / 2
        axes.append((fine * voxel_mm + centre).astype(np.float32))
        window.append(slice(start, start + covered))
    return Frame(
        Grid((axes[0], axes[1], axes[2]), voxel_mm / factor),
        factor,
        (window[0], window[1], window[2]),
    )


def _brain(rng: np.random.Generator, grid: Grid, outer: Bodies, shares: dict[str, Field]) -> Field:
    """Return what skull stripping leaves, 0 or 1: an uneven rim, open sulci cut into it."""
    depth_mm = outer.whole() + 0.7 * smooth_noise(rng, grid, wavelength_mm=14)
    notch = (shares["csf"] > 0.6) & (depth_mm < 1.5)
    return ((depth_mm > -0.3) & ~notch).astype(np.float32)


def _label(masks: dict[str, Mask], factor: int) -> npt.NDArray[np.uint8]:
    """Return the label values: tumour where it fills half a voxel, then its largest part.

    A third of a voxel is enough for the enhancing ring: it is bright, and thinner than most voxels.
    """
    names = list(masks)
    parts = np.stack([coarse(masks[name].astype(np.float32), factor=factor) for name in names])
    whole = parts.sum(axis=0) >= 0.5
    parts[names.index("enhancing_tumour")] *= 2
    values = np.array([LABEL_VALUES[name] for name in names], np.uint8)
    return np.where(whole, values[parts.argmax(axis=0)], 0).astype(np.uint8)


def _images(
    rng: np.random.Generator, frame: Frame, shares: dict[str, Field], brain: Mask
) -> dict[str, npt.NDArray[np.int16]]:
    """Return the four images inside the window, from 1 up, each with its own gain."""
    tissues = varied(rng)
    texture = 1 + 0.02 * smooth_noise(rng, frame.fine, wavelength_mm=9)
    images = {}
    for modality in MODALITIES:
        image = np.zeros(frame.fine.shape, np.float32)
        for name, share in shares.items():
            image += share * np.float32(signal(modality, tissues[name]))
        thickness_mm = float(rng.choice([1.0, 1.0, 2.0, 4.0]))
        image = thick_slices(
            image * texture, thickness_mm=thickness_mm, voxel_mm=frame.fine.voxel_mm
        )
        image = coarse(image, factor=frame.factor) * bias_field(rng, frame.coarse_grid())
        level = float(np.mean(image[brain]))
        image = rician(rng, image, sigma=rng.uniform(0.015, 0.035) * level)
        gain = np.exp(rng.uniform(np.log(300), np.log(2200))) / level
        images[modality] = np.clip(np.rint(image * gain), 1, 32767).astype(np.int16)
    return images


def _in_box(part: np.ndarray, shape: tuple[int, int, int], window: tuple[slice, ...]) -> np.ndarray:
    """Return `part` in a box of zeros."""
    box = np.zeros(shape, part.dtype)
    box[window] = part
    return box


def _affine(shape: tuple[int, int, int], spacing_mm: float) -> npt.NDArray[np.float64]:
    """Return BraTS's affine: LPS, the origin at the first voxel in X and Z, at the last in Y."""
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    affine[1, 3] = (shape[1] - 1) * spacing_mm
    return affine
