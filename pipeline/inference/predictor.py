"""One case through one or several networks: probabilities and classes on the case's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal, TypeAlias

import torch
from monai.data import MetaTensor

from networks import VolumeInferer
from pipeline.errors import DataError, Problem, ResourceError, SettingsError
from pipeline.inference.memory import fitting, free_bytes
from pipeline.inference.needs import (
    HEAP_BYTES,
    SAFETY,
    choose_window,
    halved_window,
    predict_forward_bytes,
    times,
)
from pipeline.inference.uncertainty import dropout_active, seeded_pass
from pipeline.model.trained import TrainedModel, require_alike
from transforms import build_postprocessing, build_preprocessing

Window: TypeAlias = Sequence[int] | int | Literal["auto"] | None
Item: TypeAlias = Mapping[str, Any]

FLOAT_BYTES = 4
# The inverted probabilities, their copy with the background filled, and the sum of an ensemble.
VOLUMES_AFTERWARDS = 3


class Member:
    """One model of an ensemble on its device, with the way to its grid and back.

    Args:
        model: Trained.
        device: Where its network runs.
        window: Edges in voxels; None for the whole volume in one pass; "auto" for the whole volume
            where memory allows, else the largest windows for which it does.
        overlap: Share of a window that the next one covers.
        flips: Average over all mirrorings.
    """

    def __init__(
        self,
        model: TrainedModel,
        *,
        device: torch.device,
        window: Window,
        overlap: float,
        flips: bool,
    ) -> None:
        self.model = model
        self.device = device
        self.network = model.build().to(device)
        self.window = window
        self.overlap = overlap
        self.flips = flips
        self.preprocessing = build_preprocessing(keys=("image",), **model.preprocessing)
        self.postprocessing = build_postprocessing(self.preprocessing)

    def prepare(self, item: Item) -> dict[str, Any]:
        """Return a loaded case on the network's grid.

        Raises:
            DataError: The preprocessing that the network was trained with does not fit the case.
        """
        try:
            return dict(self.preprocessing({"image": item["image"]}))
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

    def window_for(self, image: torch.Tensor) -> tuple[int, ...] | None:
        """Return the window for a prepared image (C, X, Y, Z), None for the whole volume.

        Raises:
            ResourceError: "auto", and not even a small window fits the free memory.
        """
        if self.window is None:
            return None
        if self.window != "auto":
            return (self.window,) * 3 if isinstance(self.window, int) else tuple(self.window)
        return choose_window(
            self.network,
            image_shape=(1, *image.shape),
            divisor=self.model.preprocessing["divisor"],
            free_bytes=free_bytes(self.device) - self.bytes_afterwards(image),
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

    def bytes_afterwards(self, image: torch.Tensor) -> int:
        """Return what the way back to the case's own grid takes beside, where that is memory."""
        if self.device.type != "cpu" or not isinstance(image, MetaTensor):
            return 0
        num_voxels = prod(int(size) for size in image.meta["spatial_shape"])
        return VOLUMES_AFTERWARDS * self.model.network["out_channels"] * num_voxels * FLOAT_BYTES

    def fitting_probabilities(
        self, prepared: Item, *, window: tuple[int, ...] | None, flips: bool
    ) -> tuple[MetaTensor, tuple[int, ...] | None]:
        """Do what `probabilities` does, in smaller windows where memory runs out; return which.

        Raises:
            ResourceError: See `smaller_window`.
        """
        return fitting(
            lambda size: self.probabilities(prepared, window=size, flips=flips),
            window,
            smaller=lambda size: self.smaller_window(size, prepared["image"]),
            name=self.model.name,
        )

    def fitting_sample(
        self, prepared: Item, *, window: tuple[int, ...] | None, seed: int, index: int
    ) -> tuple[MetaTensor, tuple[int, ...] | None]:
        """Do what `fitting_probabilities` does with dropout on, seeded by (`seed`, `index`)."""

        def attempt(size: tuple[int, ...] | None) -> MetaTensor:
            # Left before the sample is handed out: what is done with it is not seeded.
            with dropout_active(self.network), seeded_pass(seed=seed, index=index):
                return self.probabilities(prepared, window=size, flips=False)

        return fitting(
            attempt,
            window,
            smaller=lambda size: self.smaller_window(size, prepared["image"]),
            name=self.model.name,
        )

    def probabilities(
        self, prepared: Item, *, window: Sequence[int] | None, flips: bool
    ) -> MetaTensor:
        """Return what the network says of a prepared case, (C, X, Y, Z) on the case's own grid."""
        inferer = VolumeInferer(
            window=window,
            overlap=self.overlap,
            flips=flips,
            divisor=self.model.preprocessing["divisor"],
        )
        with torch.no_grad():
            batch = prepared["image"].as_tensor()[None].to(self.device)
            logits = inferer(batch, self.network)[0]
            done = self.postprocessing({**prepared, "pred": logits.cpu()})
        return done["probabilities"]


class Predictor:
    """An ensemble: the mean of its members' probabilities; of one member, that member's.

    Args:
        models: Of one header.
        device, window, overlap, flips: See `Member`.

    Raises:
        SettingsError: A setting is out of range.
        DataError: The models do not go together, or one of them cannot be built.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        *,
        device: torch.device,
        window: Window = None,
        overlap: float = 0.5,
        flips: bool = False,
    ) -> None:
        require_alike(models)
        if window != "auto":
            _require_usable(window, overlap)
        self.members = [
            Member(model, device=device, window=window, overlap=overlap, flips=flips)
            for model in models
        ]
        self.windows: list[tuple[int, ...] | None] = []

    def prepare(self, item: Item) -> list[dict[str, Any]]:
        """Return a case as `LoadCase` gives it, on each member's grid."""
        return [member.prepare(item) for member in self.members]

    def predict(self, item: Item) -> dict[str, Any]:
        """Return the MetaTensors `probabilities` and `classes` of a case as `LoadCase` gives it.

        `probabilities` are float32 (C, X, Y, Z), 1 in sum; `classes` uint8 (1, X, Y, Z). Both lie
        on the case's own grid. `windows` afterwards says which window each member took.
        """
        return self.predict_prepared(self.prepare(item))

    def predict_prepared(self, prepared: Sequence[Item]) -> dict[str, Any]:
        """Do what `predict` does, with what `prepare` gave."""
        self.windows = []
        pairs = zip(self.members, prepared, strict=True)
        found = (self._probabilities(member, item) for member, item in pairs)
        mean = next(found)
        for other in found:
            mean.add_(other)
        if len(self.members) > 1:
            mean.div_(len(self.members))
        classes = mean.argmax(dim=0, keepdim=True).to(torch.uint8)
        return {"probabilities": mean, "classes": classes}

    def _probabilities(self, member: Member, prepared: Item) -> MetaTensor:
        first = member.window_for(prepared["image"])
        found, window = member.fitting_probabilities(prepared, window=first, flips=member.flips)
        self.windows.append(window)
        return found

    def samples(
        self, prepared: Sequence[Item], *, num_samples: int, seed: int
    ) -> Iterator[torch.Tensor]:
        """Yield probabilities (C, X, Y, Z) with dropout on, `num_samples` of each member.

        The dropout of a pass follows from (seed, member and pass): a rerun gives the same. Flips
        are left out: their mean would hide the disagreement that is looked for.

        Raises:
            SettingsError: A network has no dropout.
        """
        for position, (member, item) in enumerate(zip(self.members, prepared, strict=True)):
            window = member.window_for(item["image"])
            for number in range(num_samples):
                index = position * num_samples + number
                sample, window = member.fitting_sample(item, window=window, seed=seed, index=index)
                yield sample


def _require_usable(window: Sequence[int] | int | None, overlap: float) -> None:
    try:
        VolumeInferer(window=window, overlap=overlap)
    except ValueError as error:
        raise SettingsError(str(error)) from error
