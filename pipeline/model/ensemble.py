"""The models of several folds as one checkpoint: the mean of their probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.model.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from pipeline.model.trained import united_digests
from pipeline.model.values import unusable_model

# What has to be the same for one network to hold all of them.
SHARED = ("network", "preprocessing", "header")


def save_ensemble(
    paths: Sequence[Path],
    path: Path,
    *,
    postprocessing: Mapping[str, float | None],
    scores: Mapping[str, float],
) -> None:
    """Write the ensemble of the checkpoints at `paths` to `path`, whole at any moment.

    It is a checkpoint like any other, of a `networks.ensemble.Ensemble`, which knows all subjects
    that any of its members was trained on. It cannot be trained on.

    Args:
        paths: Of runs that differ in fold or seed alone.
        path: The new file.
        postprocessing: Values for the stage `inference` of its settings.
        scores: What is told of it, such as the members' out-of-fold scores (`dice_mean`, ...).

    Raises:
        SettingsError: There are fewer than two checkpoints.
        DataError: A checkpoint cannot be used, or their networks, preprocessing or headers differ.
        ResourceError: The file cannot be written.
    """
    if len(paths) < 2:
        raise SettingsError(f"an ensemble needs at least two models; found {len(paths)}")
    contents = [load_checkpoint(each) for each in paths]
    first = contents[0]
    for each, content in zip(paths, contents, strict=True):
        _require_alike(content, first, name=f"{each.parent.name}/{each.name}")
    settings = dict(first["settings"])
    settings["inference"] = {**settings.get("inference", {}), **postprocessing}
    row = {**scores, "iteration": 0}
    ensemble = {
        "format": FORMAT,
        "weights": {
            f"members.{number}.{key}": tensor
            for number, content in enumerate(contents)
            for key, tensor in content["weights"].items()
        },
        **{key: first[key] for key in SHARED},
        "network": {**first["network"], "num_members": len(contents)},
        "trained_on": united_digests([content.get("trained_on") for content in contents]),
        "settings": {**settings, "fold": None},
        "versions": first["versions"],
        "progress": {"counters": {"history": [row], "iteration": 0}},
    }
    save_checkpoint(path, ensemble)


def _require_alike(content: Mapping[str, Any], first: Mapping[str, Any], *, name: str) -> None:
    for key in SHARED:
        # Text, because the order counts: it numbers the channels and the classes.
        expected, found = (json.dumps(each[key]) for each in (first, content))
        if expected != found:
            raise unusable_model(
                name,
                expected=f"the {key} of the other members: {expected}",
                found=found,
                remedy="Members of one ensemble must be trained with the same settings.",
            )
