"""The evaluator's handler that turns every validated case into scores, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from pipeline.evaluation.overlap import (
    BACKGROUND,
    article_metrics,
    background_scores,
    named_dice,
    region_dice,
)
from pipeline.training.pictures import panel
from transforms import decided_classes
from transforms.arrays import plain_tensor


class CaseScores:
    """Scores each case of a validation and keeps their means in `engine.state.metrics`.

    Region Dice is counted on the case's own grid, whatever the crop removed included; the article's
    metrics on the network's grid, as the article does. The scores of "everything is background"
    stand beside them under `background_*`; they depend on the labels only and are computed once.

    Args:
        regions: Class indices per region.
        num_classes: Channels of the network's output.
        num_pictures: Cases of which a picture is kept in `pictures`.
        deciding_regions: See `transforms.decided_classes`; the pictures show these classes.
    """

    def __init__(
        self,
        *,
        regions: Mapping[str, Sequence[int]],
        num_classes: int,
        num_pictures: int,
        deciding_regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.regions = regions
        self.num_classes = num_classes
        self.num_pictures = num_pictures
        self.deciding_regions = deciding_regions
        self.cases: dict[str, dict[str, float]] = {}
        self.pictures: dict[str, np.ndarray] = {}
        self._background: dict[str, dict[str, float]] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that decollates and postprocesses."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._score_network_grid)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score_own_grid)

    def _reset(self, _: Engine) -> None:
        self.cases.clear()
        self.pictures.clear()

    def _score_network_grid(self, engine: Engine) -> None:
        """Before the prediction leaves the network's grid: the article's metrics, the picture."""
        batch, output = engine.state.batch, engine.state.output
        for position, case in enumerate(batch["case"]):
            probabilities = torch.softmax(_plain(output["pred"][position]).float(), dim=0)
            label = _plain(output["label"][position])
            self.cases[case] = article_metrics(probabilities, label)
            if len(self.pictures) < self.num_pictures:
                decided = decided_classes(probabilities, regions=self.deciding_regions)
                self.pictures[case] = panel(
                    _plain(output["image"][position][0]).numpy(),
                    truth=label[0].numpy(),
                    prediction=decided[0].numpy(),
                )

    def _score_own_grid(self, engine: Engine) -> None:
        """After the postprocessing: region Dice, and the background's scores beside all."""
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            case, truth = batch["case"], _plain(batch["reference"])
            dices = region_dice(_plain(output["classes"]), truth, regions=self.regions)
            background = self._background_of(case, truth, _plain(output["label"]))
            self.cases[case] = named_dice(dices) | self.cases[case] | background
        # Not when the epoch is completed: that never comes if a signal arrives in the last case.
        if engine.state.iteration == engine.state.epoch_length:
            self._average(engine)

    def _background_of(
        self, case: str, native: torch.Tensor, label: torch.Tensor
    ) -> dict[str, float]:
        if case not in self._background:
            scores = background_scores(
                native, label, regions=self.regions, num_classes=self.num_classes
            )
            self._background[case] = {f"{BACKGROUND}{key}": value for key, value in scores.items()}
        return self._background[case]

    def _average(self, engine: Engine) -> None:
        names = next(iter(self.cases.values()))
        engine.state.metrics = {
            name: float(np.mean([scores[name] for scores in self.cases.values()])) for name in names
        }


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return it on the CPU without metadata: comparing MetaTensors costs more than comparing."""
    return plain_tensor(tensor).cpu()
