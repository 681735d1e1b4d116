"""A trained network with all that is needed to use it, from a run, a checkpoint or a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from networks import build_network
from pipeline.config import build_settings
from pipeline.data.datalist import region_classes_of
from pipeline.errors import DataError, Problem
from pipeline.model.bundle_files import is_bundle, read_bundle
from pipeline.model.checkpoint import BEST, load_checkpoint

NUM_DIGITS = 16  # of a subject's digest: 64 bits tell a thousand subjects apart


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Weights, and the plain JSON values that say how they are used.

    Attributes:
        name: For people: the last parts of its path.
        weights: The network's state.
        network: Arguments of `networks.build_network`.
        preprocessing: Arguments of `transforms.build_preprocessing`.
        header: The data list's: name, modality, labels, regions.
        settings: Of the run that trained it.
        scores: Of these weights on the run's validation cases, the background's beside them;
            empty where these weights were not validated.
        versions: Of torch and monai.
        trained_on: Digests of the subjects it was trained on (`subject_digest`); None if unknown.
    """

    name: str
    weights: dict[str, torch.Tensor]
    network: dict[str, Any]
    preprocessing: dict[str, Any]
    header: dict[str, Any]
    settings: dict[str, Any]
    scores: dict[str, float]
    versions: dict[str, str]
    trained_on: tuple[str, ...] | None

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """The class indices of each region."""
        return region_classes_of(self.header)

    @property
    def label_values(self) -> tuple[int, ...]:
        """The voxel value of each class."""
        return tuple(self.header["labels"].values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides a mask: the same for a run and for its bundle."""
        told = {
            "network": self.network,
            "preprocessing": self.preprocessing,
            "header": self.header,
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def build(self) -> torch.nn.Module:
        """Return the network with its weights, in evaluation mode, on the CPU.

        Raises:
            DataError: The weights are not those of the network.
        """
        try:
            network = build_network(**self.network)
            network.load_state_dict(self.weights)
        except (ValueError, RuntimeError, TypeError) as error:
            raise _problem(
                self.name,
                expected=f"the weights of {self.network}",
                found=str(error).splitlines()[0],
                remedy="Train or export the model again with this version.",
            ) from error
        return network.eval()

    def has_seen(self, subject: str) -> bool | None:
        """Whether it was trained on `subject`; None where the checkpoint does not say."""
        if self.trained_on is None:
            return None
        return subject_digest(subject) in self.trained_on


def subject_digest(subject: str) -> str:
    """Return what stands for a subject in a checkpoint, which must not name patients."""
    return hashlib.sha256(subject.encode()).hexdigest()[:NUM_DIGITS]


def load_model(path: Path) -> TrainedModel:
    """Read the model that `path` names: a run's folder, a checkpoint, or an exported bundle.

    Nothing in it is executed.

    Raises:
        DataError: There is no model, or it is damaged or foreign.
    """
    if path.is_dir() and is_bundle(path):
        return TrainedModel(name=path.resolve().name, **read_bundle(path))
    if path.is_dir() and not (path / BEST).is_file():
        raise _problem(
            path.name,
            expected=f"a run's folder with {BEST}, a checkpoint, or an exported bundle",
            found=f"a folder without {BEST} and without configs/metadata.json",
            remedy="A run has its best checkpoint after its first validation.",
        )
    file = path / BEST if path.is_dir() else path
    content = load_checkpoint(file)
    return TrainedModel(
        name=f"{file.resolve().parent.name}/{file.name}",
        weights=content["weights"],
        network=content["network"],
        preprocessing=content["preprocessing"],
        header=content["header"],
        # Settings that came later have their defaults.
        settings=build_settings(content["settings"]).model_dump(mode="json"),
        scores=_scores(content["progress"]["counters"]),
        versions=content["versions"],
        # Checkpoints of the first version do not have it.
        trained_on=content.get("trained_on"),
    )


def require_alike(models: Sequence[TrainedModel]) -> None:
    """Refuse an ensemble whose models speak of different things.

    Raises:
        DataError: Modalities, labels or regions differ; both models are named.
    """
    first, *others = models
    for other in others:
        for key in ("modality", "labels", "regions"):
            # Text, because the order counts: it numbers the channels and the classes.
            expected, found = (json.dumps(model.header[key]) for model in (first, other))
            if expected != found:
                raise _problem(
                    other.name,
                    expected=f"the {key} of {first.name}: {expected}",
                    found=found,
                    remedy="Models of one ensemble must be trained on lists with the same header.",
                )


def _scores(counters: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of the last epoch, if that is where these weights are from."""
    if not counters["history"]:
        return {}
    row = counters["history"][-1]
    if row["iteration"] != counters["iteration"] or "dice_mean" not in row:
        return {}
    return {name: value for name, value in row.items() if isinstance(value, float)}


def _problem(name: str, *, expected: str, found: str, remedy: str) -> DataError:
    return DataError.of(
        Problem(
            case="model",
            kind="unusable-model",
            file=name,
            expected=expected,
            found=found,
            remedy=remedy,
        )
    )
