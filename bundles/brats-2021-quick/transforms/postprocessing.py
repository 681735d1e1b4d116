"""From the network's logits to probabilities and classes on the case's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Activationsd, CastToTyped, Compose, Invertd, Transform
from monai.utils import TraceKeys


class RestoreGridd(Transform):
    """Undo the spatial part of `preprocessing` on a prediction; MONAI's `Invertd`, linear.

    Args:
        preprocessing: the chain that made the image, or one built with the same settings.
        prediction_key: (C, X, Y, Z) on the preprocessed grid.
        image_key: the preprocessed image, whose trace says what was done to it.
    """

    def __init__(self, preprocessing: Compose, *, prediction_key: str, image_key: str) -> None:
        self.prediction_key = prediction_key
        self.image_key = image_key
        self.invert = Invertd(
            prediction_key, transform=preprocessing, orig_keys=image_key, nearest_interp=False
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` whose prediction lies on the case's own grid.

        Raises:
            ValueError: if the image has no trace, or its grid is not the prediction's.
        """
        image = data[self.image_key]
        prediction = data[self.prediction_key]
        if not isinstance(image, MetaTensor):
            raise ValueError(
                f"'{self.image_key}' must be a MetaTensor that carries the trace of its "
                f"preprocessing; found {type(image).__name__}"
            )
        if prediction.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"'{self.prediction_key}' must lie on the grid of '{self.image_key}', "
                f"{tuple(image.shape[1:])}; found {tuple(prediction.shape[1:])}"
            )
        inverted = self.invert({**data, self.image_key: _with_portable_trace(image)})
        return {**inverted, self.image_key: image}


def _with_portable_trace(image: MetaTensor) -> MetaTensor:
    """Return `image` with a trace that any chain of the same settings can invert.

    MONAI compares the address of the transform that made each entry, which no longer fits once
    a sample comes from a cache on disk or from a worker process that was not forked.
    """
    portable = MetaTensor(image.as_tensor(), meta=image.meta)
    portable.applied_operations = [_without_id(entry) for entry in image.applied_operations]
    return portable


def _without_id(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a trace entry without addresses; a crop's entry may hold a pad's."""
    copied = {
        key: _without_id(value) if isinstance(value, Mapping) else value
        for key, value in entry.items()
    }
    return {**copied, TraceKeys.ID: TraceKeys.NONE} if TraceKeys.ID in entry else copied


def decided_classes(
    probabilities: torch.Tensor, *, regions: Sequence[Sequence[int]] | None = None
) -> torch.Tensor:
    """Return the class of each voxel, uint8 (1, X, Y, Z), of probabilities (C, X, Y, Z).

    Without `regions` it is the most probable one. With them, a voxel belongs to a region where the
    probabilities of the region's classes are more than a half in sum, and its class is that of the
    innermost region that it belongs to: this is what region Dice asks, and a voxel that is tumour
    for certain, of an uncertain kind, is not lost to the background.

    Args:
        probabilities: not negative, 1 in sum over C.
        regions: class indices of each region, each within the one before it, which has one class
            more (`networks.region_outputs`).
    """
    if regions is None:
        # As argmax, ties and NaN included, in a fifth of its time.
        return probabilities.max(dim=0, keepdim=True).indices.to(torch.uint8)
    classes = torch.zeros_like(probabilities[:1], dtype=torch.uint8)
    for region, within in zip(regions, [*regions[1:], []], strict=True):
        (ring,) = set(region) - set(within)
        classes[probabilities[sorted(region)].sum(dim=0, keepdim=True) > 0.5] = ring
    return classes


class FillBackgroundd(Transform):
    """Turn inverted probabilities into a complete distribution, and into classes.

    What the crop removed came back as 0 in all channels: there channel 0, the background,
    becomes 1; elsewhere it becomes what the other channels leave. `regions` is that of
    `decided_classes`.
    """

    def __init__(
        self, *, prediction_key: str, regions: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.prediction_key = prediction_key
        self.regions = regions

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with `probabilities` (C, X, Y, Z) and `classes` (1, X, Y, Z)."""
        probabilities = data[self.prediction_key].clone()
        probabilities[0] = (1 - probabilities[1:].sum(dim=0)).clamp_(min=0)
        classes = decided_classes(probabilities, regions=self.regions)
        return {**data, "probabilities": probabilities, "classes": classes}


def build_postprocessing(
    preprocessing: Compose,
    *,
    prediction_key: str = "pred",
    image_key: str = "image",
    regions: Sequence[Sequence[int]] | None = None,
) -> Compose:
    """Return the chain that brings a prediction back to its case; it works on one decollated case.

    Args:
        preprocessing: the chain that made the image, or one built with the same settings.
        prediction_key: logits (C, X, Y, Z) on the preprocessed grid, background first.
        image_key: the preprocessed image, MetaTensor with its trace.
        regions: of a network with region outputs; see `decided_classes`.

    Returns:
        A chain that adds `probabilities`, MetaTensor float32 (C, X, Y, Z), 1 in sum, with the
        background where the crop had removed the voxel, and `classes`, MetaTensor uint8
        (1, X, Y, Z), both of the shape, orientation and affine that were loaded. The value at
        `prediction_key` becomes the inverted probabilities.
    """
    return Compose(
        [
            # MONAI's softmax returns the dtype of the logits: float16 would round probabilities.
            CastToTyped(prediction_key, dtype=torch.float32),
            Activationsd(prediction_key, softmax=True),
            RestoreGridd(preprocessing, prediction_key=prediction_key, image_key=image_key),
            FillBackgroundd(prediction_key=prediction_key, regions=regions),
        ]
    )
