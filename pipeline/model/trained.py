"""A trained network with all that is needed to use it, from a run, a checkpoint or a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from pipeline.data.datalist import region_classes_of
from pipeline.errors import SettingsError
from pipeline.model.building import BUILD_ERRORS, built_with_weights
from pipeline.model.bundle_files import WEIGHTS, in_single_precision, is_bundle, read_bundle
from pipeline.model.checkpoint import BEST, ENSEMBLE, load_checkpoint
from pipeline.model.values import REMEDY, judged_values, require_plain, unusable_model

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
    def deciding_regions(self) -> list[list[int]] | None:
        """The regions by which a voxel's class is decided (`transforms.decided_classes`), if any.

        They are those of a network with an output per region.
        """
        return self.network.get("regions")

    @property
    def is_ensemble(self) -> bool:
        """Whether the network is several in one."""
        return self.network.get("num_members", 1) > 1

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
            network = built_with_weights(
                self.network, self.weights, divisor=self.preprocessing["divisor"]
            )
        except BUILD_ERRORS as error:
            raise unusable_model(
                self.name,
                expected=f"the weights of {self.network}",
                found=str(error).partition("\n")[0] or type(error).__name__,
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


def united_digests(lists: Sequence[Sequence[str] | None]) -> tuple[str, ...] | None:
    """Return the digests of all subjects that weights come from; None where one is unknown."""
    known = [digests for digests in lists if digests is not None]
    if len(known) < len(lists):
        return None
    return tuple(sorted({digest for digests in known for digest in digests}))


def load_model(path: Path) -> TrainedModel:
    """Read the model that `path` names: the folder of a run or of a crossval, which is an ensemble,
    a checkpoint, or an exported bundle.

    Nothing in it is executed.

    Raises:
        DataError: There is no model, or it is damaged or foreign.
    """
    if path.is_dir() and is_bundle(path):
        name, stored = path.resolve().name, read_bundle(path)
        size = (path / WEIGHTS).stat().st_size
        values = judged_values(stored, name=name, max_weight_bytes=size)
        weights = values["weights"]
        values["weights"] = {key: in_single_precision(weights[key]) for key in weights}
    else:
        file = _checkpoint_of(path)
        name = f"{file.resolve().parent.name}/{file.name}"
        stored, size = _values_of(load_checkpoint(file), name), file.stat().st_size
        values = judged_values(stored, name=name, max_weight_bytes=size)
    return TrainedModel(name=name, **values)


def _checkpoint_of(path: Path) -> Path:
    """Return the checkpoint that `path` is, or that is in the folder `path`."""
    if not path.is_dir():
        return path
    if (path / ENSEMBLE).is_file():
        return path / ENSEMBLE
    if not (path / BEST).is_file():
        raise unusable_model(
            path.name,
            expected=f"a run's folder with {BEST}, a crossval's with {ENSEMBLE}, a checkpoint, or "
            "an exported bundle",
            found=f"a folder without {BEST}, {ENSEMBLE} and configs/metadata.json",
            remedy="A run has its best checkpoint after its first validation, or at its end.",
        )
    return path / BEST


def _values_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the part of a checkpoint's content that is not for resuming."""
    kept = ("weights", "network", "preprocessing", "header", "settings", "versions")
    return {
        **{key: content[key] for key in kept},
        "scores": _scores(content["progress"], name),
        # Checkpoints of the first version do not have it.
        "trained_on": content.get("trained_on"),
    }


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
                raise unusable_model(
                    other.name,
                    expected=f"the {key} of {first.name}: {expected}",
                    found=found,
                    remedy="Models of one ensemble must be trained on lists with the same header.",
                )
        if other.deciding_regions != first.deciding_regions:
            raise unusable_model(
                other.name,
                expected=f"outputs as {first.name} has them: {_outputs(first)}",
                found=_outputs(other),
                remedy="An ensemble is of models with one output per class, or all per region.",
            )


def default_inference(
    models: Sequence[TrainedModel], *, said: Collection[str] = ()
) -> dict[str, Any]:
    """Return how masks are made with `models` unless something else is said: their own settings.

    Args:
        models: Of one ensemble.
        said: Names of settings that are given, about which models may differ.

    Raises:
        SettingsError: Models differ about another setting.
    """
    first, *others = models
    for other in others:
        for name, value in other.settings["inference"].items():
            if name not in said and value != first.settings["inference"][name]:
                raise SettingsError(
                    f"{other.name} and {first.name} differ in inference.{name}: {value} and "
                    f"{first.settings['inference'][name]}. Say it on the command line."
                )
    return dict(first.settings["inference"])


def _outputs(model: TrainedModel) -> str:
    return "one per class" if model.deciding_regions is None else "one per region"


def _scores(progress: Any, name: str) -> dict[str, float]:
    """Return the scores of the last epoch, if that is where these weights are from."""
    counters = progress.get("counters") if isinstance(progress, dict) else None
    counters = counters if isinstance(counters, dict) else {}
    history = counters.get("history")
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise unusable_model(
            name, expected="counters with a history (progress)", found="others", remedy=REMEDY
        )
    row = history[-1] if history else {}
    facts = {**row, "iteration now": counters.get("iteration")}
    require_plain(facts, name=name, key="progress", finite=False)
    if "dice_mean" not in row or row.get("iteration") != facts["iteration now"]:
        return {}
    # A score that is no number says nothing.
    return {
        key: value for key, value in row.items() if isinstance(value, float) and isfinite(value)
    }
