"""One network of an ensemble: a case onto its grid, through it, and back onto the case's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from monai.data import MetaTensor
from torch import nn

from networks import VolumeInferer
from pipeline.errors import DataError, Problem, ResourceError, SettingsError
from pipeline.inference.classes import can_be_direct, most_probable_classes
from pipeline.inference.memory import fitting, free_bytes, is_out_of_memory
from pipeline.inference.needs import (
    HEAP_BYTES,
    SAFETY,
    choose_window,
    halved_window,
    predict_forward_bytes,
    times,
)
from pipeline.inference.uncertainty import dropout_active, seeded_pass
from pipeline.model.heap import keep_freed_memory
from pipeline.model.precision import Forward, half_precision
from pipeline.model.trained import TrainedModel
from transforms import build_postprocessing, build_preprocessing
from transforms.postprocessing import RestoreGridd

Window: TypeAlias = Sequence[int] | int | Literal["auto"] | None
Item: TypeAlias = Mapping[str, Any]
Result = TypeVar("Result")

FLOAT_BYTES = 4
# The inverted probabilities, their copy with the background filled, and the sum of an ensemble.
VOLUMES_AFTERWARDS = 3
# Of the case that is read while another one is in the network, in volumes of all modalities: as
# read, as prepared, and what lies in between. The mask that is written meanwhile is small beside.
VOLUMES_AHEAD = 3


class Member:
    """One model of an ensemble on its device, with the way to its grid and back.

    Args:
        model: Trained.
        device: Where its network runs.
        window: Edges in voxels, rounded up to multiples of the network's divisor; None for the
            whole volume in one pass; "auto" for the whole volume where memory allows, else the
            largest windows for which it does.
        overlap: Share of a window that the next one covers.
        flips: Average over all mirrorings.
        brain_only: What lies outside the brain's box is background.
        amp: Compute in half precision where the device is a GPU.
        reads_ahead: Another case is prepared while one is in the network, and takes memory.

    Raises:
        SettingsError: `window` or `overlap` is out of range, or so small that the network's
            normalisation has nothing to work on.
    """

    def __init__(
        self,
        model: TrainedModel,
        *,
        device: torch.device,
        window: Window,
        overlap: float,
        flips: bool,
        brain_only: bool,
        amp: bool,
        reads_ahead: bool = False,
    ) -> None:
        self.model = model
        self.reads_ahead = reads_ahead
        self.device = device
        self.network = model.build().to(device)
        self.overlap = overlap
        self.flips = flips
        self.brain_only = brain_only
        self.amp = amp
        self.window = window if window == "auto" else self._usable(window)
        # Two of the same: MONAI changes a chain while it inverts, and a thread may be preparing.
        self.preprocessing, inverted = (
            build_preprocessing(keys=("image",), **model.preprocessing) for _ in range(2)
        )
        self.postprocessing = build_postprocessing(inverted, regions=model.deciding_regions)
        self.restore_classes = RestoreGridd(inverted, prediction_key="classes", image_key="image")

    def _usable(self, window: Sequence[int] | int | None) -> tuple[int, ...] | None:
        """Return one edge per axis, multiples of the divisor."""
        divisor = self.model.preprocessing["divisor"]
        try:
            usable = VolumeInferer(window=window, overlap=self.overlap, divisor=divisor).window
        except ValueError as error:
            raise SettingsError(str(error)) from error
        if usable is not None and self._sees_one_voxel(usable):
            raise SettingsError(
                f"--window: in windows of {times(usable)} voxels {self.model.name} has a single "
                f"voxel left at its coarsest level, which instance normalisation cannot do with. "
                f"Choose more than {divisor} voxels along an axis, or leave --window out."
            )
        return usable

    def _sees_one_voxel(self, size: Sequence[int]) -> bool:
        """Whether instance normalisation gets a single voxel of (X, Y, Z), which has no variance.

        At its coarsest level, a network has one voxel for each `divisor` of the image's.
        """
        is_one = all(edge <= self.model.preprocessing["divisor"] for edge in size)
        return is_one and any(isinstance(m, nn.InstanceNorm3d) for m in self.network.modules())

    def prepare(self, item: Item) -> dict[str, Any]:
        """Return a loaded case on the network's grid, and on its device where memory allows.

        Raises:
            DataError: The preprocessing that the network was trained with does not fit the case,
                or leaves too little of it for the network's normalisation.
        """
        image = item["image"]
        try:
            return self._preprocessed(item, image.to(self.device))
        except (RuntimeError, MemoryError) as error:
            if self.device.type == "cpu" or not is_out_of_memory(error):
                raise
        return self._preprocessed(item, image)

    def _preprocessed(self, item: Item, image: torch.Tensor) -> dict[str, Any]:
        try:
            prepared = dict(self.preprocessing({"image": image}))
        except RuntimeError as error:
            # MONAI wraps what a transform raises; a ValueError is what ours say of an image.
            if not isinstance(error.__cause__, ValueError):
                raise
            raise DataError.of(
                Problem(
                    case=item["case"],
                    kind="preprocessing",
                    file="",
                    expected=f"a case that the preprocessing of {self.model.name} fits",
                    found=str(error.__cause__),
                    remedy="Check the images, or use a model that was trained on such.",
                )
            ) from error
        self._require_enough(item["case"], prepared["image"].shape[1:])
        return prepared

    def _require_enough(self, case: str, size: Sequence[int]) -> None:
        """Refuse a prepared case (X, Y, Z) of which normalisation would get a single voxel."""
        seen = self._asked_for(size)
        if not self._sees_one_voxel(seen):
            return
        raise DataError.of(
            Problem(
                case=case,
                kind="too-small",
                file="",
                expected=f"more than {self.model.preprocessing['divisor']} voxels along an axis, "
                f"on the grid of {self.model.name}, for its instance normalisation",
                found=f"{times(seen)} with what was padded",
                remedy="Check the images: a brain of a few voxels is mostly a broken skull strip."
                if seen == tuple(size)
                else "Choose a larger --window, or leave it out.",
            )
        )

    def _asked_for(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return how much of (X, Y, Z) the settings want in one pass, where memory allows."""
        window = size if self.window is None or self.window == "auto" else self.window
        return tuple(map(min, window, size))

    def window_for(self, image: torch.Tensor) -> tuple[int, ...] | None:
        """Return the window for a prepared image (C, X, Y, Z), None for the whole volume.

        Its edges are multiples of the network's divisor, and no longer than the image's.

        Raises:
            ResourceError: "auto", and not even a small window fits the free memory.
        """
        if self.window is None:
            return None
        if self.window != "auto":
            return self._asked_for(image.shape[1:])
        return choose_window(
            self.network,
            image_shape=(1, *image.shape),
            divisor=self.model.preprocessing["divisor"],
            free_bytes=free_bytes(self.device) - self.bytes_beside(image),
        )

    def smaller_window(self, window: Sequence[int] | None, image: torch.Tensor) -> tuple[int, ...]:
        """Return the window to try after `window` was too large for the memory that there is.

        Raises:
            ResourceError: It was the smallest; or it was asked for, and is not changed unasked.
        """
        _, *size = image.shape
        divisor = self.model.preprocessing["divisor"]
        tried = tuple(size) if window is None else tuple(map(min, window, size))
        smaller = halved_window(tried, size=size, divisor=divisor)
        if self.window == "auto" and smaller is not None:
            return smaller
        shape = (1, image.shape[0], *tried)
        needed = SAFETY * predict_forward_bytes(self.network, image_shape=shape) + HEAP_BYTES
        remedy = (
            "Leave --window out, so that it is chosen by the memory, or choose a smaller one"
            if self.window != "auto" and smaller is not None
            else "End other programs, or use a machine with more memory"
        )
        raise ResourceError(
            f"{self.model.name}: out of memory with {times(tried)} of {times(size)} voxels in one "
            f"pass, which needs about {needed / 1e9:.2f} GB of memory; free now: "
            f"{free_bytes(self.device) / 1e9:.2f} GB. {remedy}."
        )

    def bytes_beside(self, image: torch.Tensor) -> int:
        """Return what the device needs beside the pass of a prepared case.

        That is the way back to the case's own grid, if it takes place there, and the next case.
        """
        if not isinstance(image, MetaTensor):
            return 0
        num_volumes = VOLUMES_AHEAD * len(image) if self.reads_ahead else 0
        if self.device.type == "cpu":
            num_volumes += VOLUMES_AFTERWARDS * self.model.network["out_channels"]
        return num_volumes * prod(map(int, image.meta["spatial_shape"])) * FLOAT_BYTES

    def _fitting(
        self,
        attempt: Callable[[tuple[int, ...] | None], Result],
        prepared: Item,
        window: tuple[int, ...] | None,
    ) -> tuple[Result, tuple[int, ...] | None]:
        return fitting(
            attempt,
            window,
            smaller=lambda size: self.smaller_window(size, prepared["image"]),
            name=self.model.name,
        )

    def fitting_probabilities(
        self, prepared: Item, *, window: tuple[int, ...] | None, flips: bool
    ) -> tuple[MetaTensor, tuple[int, ...] | None]:
        """Do what `probabilities` does, in smaller windows where memory runs out; return which.

        Raises:
            ResourceError: See `smaller_window`.
        """
        return self._fitting(
            lambda size: self.probabilities(prepared, window=size, flips=flips), prepared, window
        )

    def fitting_classes(
        self, prepared: Item, *, window: tuple[int, ...] | None
    ) -> tuple[MetaTensor, tuple[int, ...] | None]:
        """Do what `classes` does, as `fitting_probabilities` does what `probabilities` does."""
        return self._fitting(lambda size: self.classes(prepared, window=size), prepared, window)

    def fitting_sample(
        self, prepared: Item, *, window: tuple[int, ...] | None, seed: int, index: int
    ) -> tuple[MetaTensor, tuple[int, ...] | None]:
        """Do what `fitting_probabilities` does with dropout on, seeded by (`seed`, `index`)."""

        def attempt(size: tuple[int, ...] | None) -> MetaTensor:
            # Left before the sample is handed out: what is done with it is not seeded.
            with dropout_active(self.network), seeded_pass(seed=seed, index=index):
                return self.probabilities(prepared, window=size, flips=False)

        return self._fitting(attempt, prepared, window)

    def probabilities(
        self, prepared: Item, *, window: Sequence[int] | None, flips: bool
    ) -> MetaTensor:
        """Return what the network says of a prepared case, (C, X, Y, Z) on the case's own grid."""
        logits = self._logits(prepared, window=window, flips=flips)
        return self._done(prepared, logits)["probabilities"]

    def classes(self, prepared: Item, *, window: Sequence[int] | None) -> MetaTensor:
        """Return the most probable class of each voxel, uint8 (1, X, Y, Z) on the case's own grid.

        It is that of the `probabilities`. Where the way back to the case's grid only moves voxels,
        no probability is computed for it.
        """
        logits = self._logits(prepared, window=window, flips=self.flips)
        is_resampled = self.model.preprocessing.get("spacing_mm") is not None
        by_regions = self.model.deciding_regions is not None
        if self.flips or is_resampled or by_regions or not can_be_direct(logits):
            return self._done(prepared, logits)["classes"]
        classes = MetaTensor(most_probable_classes(logits)[None].cpu())
        restored = self.restore_classes({"image": prepared["image"], "classes": classes})
        found: MetaTensor = restored["classes"]
        return found

    def _logits(self, prepared: Item, *, window: Sequence[int] | None, flips: bool) -> torch.Tensor:
        inferer = VolumeInferer(
            window=window,
            overlap=self.overlap,
            flips=flips,
            divisor=self.model.preprocessing["divisor"],
            content_only=self.brain_only,
        )
        with torch.no_grad():
            batch = prepared["image"].as_tensor()[None].to(self.device)
            if self.device.type == "cpu":
                self._settle_memory(prepared["image"], window)
            forward = Forward(half_precision(self.device, amp=self.amp), inferer)
            return forward(batch, self.network)[0]

    def _settle_memory(self, image: torch.Tensor, window: Sequence[int] | None) -> None:
        num_channels, *size = image.shape
        keep_freed_memory(
            predict_forward_bytes(self.network, image_shape=(1, num_channels, *(window or size))),
            free_bytes=free_bytes(self.device),
        )

    def _done(self, prepared: Item, logits: torch.Tensor) -> Item:
        with torch.no_grad():
            done: Item = self.postprocessing({**prepared, "pred": logits.cpu()})
        return done
