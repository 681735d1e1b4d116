"""The files of one case, read and compared with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from nibabel import aff2axcodes
from nibabel.affines import voxel_sizes

from pipeline.data.datalist import Case
from pipeline.data.images import read_image
from pipeline.data.resampling import resample_to
from pipeline.errors import DataError, Problem

Item = TypeVar("Item")
Result = TypeVar("Result")

AFFINE_TOLERANCE = 1e-3  # in mm: what float32 headers and rewritten quaternions differ by


@dataclass(frozen=True, eq=False)
class ImageFile:
    """One volume (X, Y, Z) as its file stores it, with its affine (4, 4) in RAS mm.

    `name` is the file's name, with the volume's index where the file holds several; `num_masked` is
    the number of voxels that were not finite and are 0 here (`read_content`).
    """

    name: str
    volume: np.ndarray
    affine: np.ndarray
    num_masked: int = 0

    @cached_property
    def is_constant(self) -> bool:
        """Whether all voxels are equal (NaN is equal to nothing)."""
        return bool(self.volume.min() == self.volume.max())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the voxels in float32, whatever the type and compression of the file."""
        digest = hashlib.sha256()
        with np.errstate(over="ignore"):
            for plane in self.volume.T:  # one at a time, which stays in a processor's cache
                digest.update(np.ascontiguousarray(plane, dtype=np.float32).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class CaseContent:
    """The images of a case in modality order, and its label (int32) if it has one.

    What could not be read is not here: `images` may be shorter than the case's list.
    """

    case: Case
    images: tuple[ImageFile, ...]
    label: ImageFile | None

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """The images and the label."""
        return self.images if self.label is None else (*self.images, self.label)


def read_content(
    case: Case, *, labels: bool, mask_nonfinite: bool = False, num_threads: int = 1
) -> tuple[CaseContent, list[Problem]]:
    """Read the files of `case`, and report each one that cannot be read or is damaged.

    `labels` says whether the label is wanted; a case without one then has a problem. With
    `mask_nonfinite`, intensities that are NaN or infinite in float32 become 0 before anything else
    sees them; `nonfinite_problems` tells how many. `num_threads` files are read at a time.
    """
    is_one_file = len(case.images) == 1
    reads = [partial(_read_images, path, is_one_file=is_one_file) for path in case.images]
    if labels:
        reads.append(partial(_read_label, case))
    problems: list[Problem] = []
    images: list[ImageFile] = []
    label = None
    for number, found in enumerate(in_threads(_attempted, reads, num_threads=num_threads)):
        if isinstance(found, DataError):
            problems += with_case(found, case.id)
        elif number < len(case.images):
            images += found
        else:
            (label,) = found
    if mask_nonfinite:
        images = [_masked(image) for image in images]
    return CaseContent(case, tuple(images), label), problems


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int
) -> list[Result]:
    """Return the results in the order of the items; no thread is left when this returns.

    Threads serve where the work is inflating and array arithmetic, which release the interpreter's
    lock.
    """
    if num_threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads) as executor:
        return list(executor.map(function, items))


def with_case(error: DataError, case: str) -> list[Problem]:
    """Return the problems of a file's error, with the case that the file belongs to."""
    return [replace(problem, case=case) for problem in error.problems]


def bring_to_grid(content: CaseContent, index: int) -> CaseContent:
    """Return the content with all images on the grid of image `index`; labels are not touched.

    Only images on another grid are resampled, linearly, and are float32 then. Raises ValueError if
    there is no such image.
    """
    if not 0 <= index < len(content.images):
        raise ValueError(
            f"{content.case.id}: there is no image {index} to resample to among "
            f"{len(content.images)}"
        )
    target = content.images[index]
    images = tuple(
        image if _same_grid(target, image) else _resampled(image, target)
        for image in content.images
    )
    return replace(content, images=images)


def grid_problems(content: CaseContent) -> list[Problem]:
    """Report each file whose shape, affine, spacing or orientation is not that of the first."""
    if not content.files:
        return []
    first, *others = content.files
    return [
        Problem(
            case=content.case.id,
            kind="different-grid",
            file=other.name,
            expected=f"the grid of {first.name}: {_describe_grid(first)}",
            found=_describe_grid(other),
            remedy="Resample the file to the first one's grid, deliberately, or replace it; "
            "`infer --resample-to MODALITY` does it on the way.",
        )
        for other in others
        if not _same_grid(first, other)
    ]


def nonfinite_problems(content: CaseContent) -> list[Problem]:
    """Report each image with voxels that are, or were, NaN or infinite in float32.

    Where they have been set to 0 on request this is a warning, unless no other voxel is left.
    """
    problems = []
    for image in content.images:
        num_bad = image.num_masked or int(np.count_nonzero(_is_nonfinite(image.volume)))
        if num_bad:
            is_accepted = 0 < image.num_masked < image.volume.size
            problems.append(
                Problem(
                    case=content.case.id,
                    kind="non-finite",
                    file=image.name,
                    expected="finite intensities",
                    found=f"{num_bad} of {image.volume.size} voxels are NaN or infinite"
                    + (", and are taken for 0" if is_accepted else ""),
                    remedy=_nonfinite_remedy(image, num_bad),
                    severity="warning" if is_accepted else "error",
                )
            )
    return problems


def _nonfinite_remedy(image: ImageFile, num_bad: int) -> str:
    if num_bad == image.volume.size:
        return "Export the image again: there is nothing else in it."
    if image.num_masked:
        return "Export the image again if they lie within the brain."
    return "Export the image again, or have these voxels taken for 0 with --mask-nonfinite."


def _attempted(read: Callable[[], list[ImageFile]]) -> list[ImageFile] | DataError:
    """Return what `read` gives, or its error: the other files are read all the same."""
    try:
        return read()
    except DataError as error:
        return error


def _read_images(path: Path, *, is_one_file: bool) -> list[ImageFile]:
    """Return the image in a file, or the images in a case's only file."""
    volumes, affine = read_image(path, dtype=None, channels=is_one_file)
    if not is_one_file:
        return [ImageFile(path.name, volumes, affine)]
    if len(volumes) == 1:
        return [ImageFile(path.name, volumes[0], affine)]
    return [
        ImageFile(f"{path.name}[{index}]", volume, affine) for index, volume in enumerate(volumes)
    ]


def _read_label(case: Case) -> list[ImageFile]:
    if case.label is None:
        raise DataError.of(
            Problem(
                case=case.id,
                kind="missing-label",
                file="",
                expected="a label file",
                found="none in the data list",
                remedy="Add the label, or move the case to the testing section.",
            )
        )
    volume, affine = read_image(case.label, dtype=np.int32)
    return [ImageFile(case.label.name, volume, affine)]


def _resampled(image: ImageFile, target: ImageFile) -> ImageFile:
    volume = resample_to(
        image.volume,
        affine=image.affine,
        target_shape=target.volume.shape,
        target_affine=target.affine,
    )
    return ImageFile(image.name, volume, target.affine)


def _same_grid(first: ImageFile, other: ImageFile) -> bool:
    return first.volume.shape == other.volume.shape and np.allclose(
        first.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE
    )


def _describe_grid(image: ImageFile) -> str:
    """Name shape, orientation, spacing and position: whichever of them differs is then seen."""
    shape = "x".join(str(size) for size in image.volume.shape)
    spacing = "x".join(f"{size:.4g}" for size in voxel_sizes(image.affine))
    origin = ", ".join(f"{value:.2f}" for value in image.affine[:3, 3])
    axcodes = "".join(aff2axcodes(image.affine))
    return f"{shape} voxels of {spacing} mm, {axcodes}, origin ({origin})"


def _masked(image: ImageFile) -> ImageFile:
    """Return `image` with 0 where it is not finite, and the number of these voxels."""
    is_bad = _is_nonfinite(image.volume)
    num_bad = int(np.count_nonzero(is_bad))
    if not num_bad:
        return image
    volume = image.volume.copy(order="K")
    volume[is_bad] = 0
    return replace(image, volume=volume, num_masked=num_bad)


def _is_nonfinite(volume: np.ndarray) -> np.ndarray:
    """Return where (X, Y, Z) is NaN or infinite in float32; nothing to look at in integers."""
    if volume.dtype.kind != "f":
        return np.zeros((), dtype=bool)
    with np.errstate(over="ignore"):
        return ~np.isfinite(volume.astype(np.float32, copy=False))
