"""One case through one or several networks: probabilities and classes on the case's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor

from pipeline.inference.member import Item, Member, Window
from pipeline.inference.uncertainty import dropout_layers
from pipeline.model.trained import TrainedModel, require_alike
from transforms import decided_classes


class Predictor:
    """An ensemble: the mean of its members' probabilities; of one member, that member's.

    Args:
        models: Of one header.
        device, window, overlap, flips, brain_only, amp, reads_ahead: See `Member`.

    Raises:
        SettingsError: See `Member`.
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
        brain_only: bool = False,
        amp: bool = True,
        reads_ahead: bool = False,
    ) -> None:
        require_alike(models)
        self.members = [
            Member(
                model,
                device=device,
                window=window,
                overlap=overlap,
                flips=flips,
                brain_only=brain_only,
                amp=amp,
                reads_ahead=reads_ahead,
            )
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
        classes = decided_classes(mean, regions=self.members[0].model.deciding_regions)
        return {"probabilities": mean, "classes": classes}

    def classes_prepared(self, prepared: Sequence[Item]) -> MetaTensor:
        """Return the `classes` of `predict_prepared` alone; of one model, at less cost."""
        if len(self.members) > 1:
            return self.predict_prepared(prepared)["classes"]
        (member,), (item,) = self.members, prepared
        first = member.window_for(item["image"])
        classes, window = member.fitting_classes(item, window=first)
        self.windows = [window]
        return classes

    def _probabilities(self, member: Member, prepared: Item) -> MetaTensor:
        first = member.window_for(prepared["image"])
        found, window = member.fitting_probabilities(prepared, window=first, flips=member.flips)
        self.windows.append(window)
        return found

    def require_dropout(self) -> None:
        """Refuse networks of which `samples` cannot be had.

        Raises:
            SettingsError: A network has no dropout.
        """
        for member in self.members:
            dropout_layers(member.network)

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
