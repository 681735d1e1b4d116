"""Starting or resuming a run: what has to be right before the first iteration."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from networks import build_network
from pipeline.data.datalist import Case, DataList
from pipeline.data.files import replace_file, sweep_temporaries
from pipeline.errors import DataError, Problem, SettingsError
from pipeline.inference.memory import free_bytes
from pipeline.model.checkpoint import load_checkpoint, require_same_modalities
from pipeline.model.heap import keep_freed_memory
from pipeline.model.trained import subject_digest, united_digests
from pipeline.signals import StopRequest
from pipeline.training.data import TrainingData, prepare_data
from pipeline.training.keras_weights import load_keras_weights
from pipeline.training.progress import Progress
from pipeline.training.room import Foresight
from pipeline.training.run import Model, TrainingRun, seed_everything
from pipeline.training.shortage import naming_shortages, smaller_cache, smaller_step
from pipeline.training.stored import StoredState

LOG = logging.getLogger(__name__)
SETTINGS = "settings.json"


def fingerprint(
    header: Mapping[str, Any], training: Sequence[Case], validation: Sequence[Case]
) -> str:
    """Return a digest of header, split and file sizes: a resumed run must see the same data."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for part in (training, validation):
        for case in part:
            files = [*case.images, *([case.label] if case.label else [])]
            sizes = [(file.name, file.stat().st_size) for file in files]
            digest.update(repr((case.id, case.label_values, sizes)).encode())
        digest.update(b"|")
    return digest.hexdigest()


def train(
    datalist: DataList,
    *,
    folder: Path,
    settings: dict[str, Any],
    device: torch.device,
    state: StoredState | None = None,
    init_weights: Path | None = None,
    cache_dir: Path | None = None,
) -> Progress:
    """Train in `folder` and return how it went.

    Args:
        datalist: Already checked.
        folder: The run's own folder.
        settings: All settings as plain values; they are stored in every checkpoint.
        device: Where the network runs.
        state: What to resume from.
        init_weights: A Keras file of the article (.h5), or a checkpoint, to start from.
        cache_dir: Folder of preprocessed cases; no setting, as paths do not leave the machine.

    Raises:
        DataError: The data are not those that the checkpoint was trained on.
        ResourceError: Memory or disk cannot suffice, as predicted before the cache is filled, or
            runs out; or a loader worker was killed.
        RunStopped, NumericalError, ResourceError: See `TrainingRun.go`.
    """
    if state is not None and state.remark:
        LOG.warning(state.remark)
    sweep_temporaries(folder)
    seed_everything(settings["seed"], deterministic=settings["training"]["deterministic"])
    training_cases, validation_cases = _split(datalist, settings)
    mark = fingerprint(datalist.header(), training_cases, validation_cases)
    if state is not None:
        _require_same_data(state.content, datalist.header(), mark)
    model, network = _build_model(datalist, settings, training_cases)
    if state is not None:
        # It may have begun with weights that had seen others.
        model = replace(model, trained_on=state.content.get("trained_on"))
    elif init_weights is not None:
        before = load_weights(network, init_weights, header=datalist.header())
        model = replace(model, trained_on=united_digests([model.trained_on, before]))
    foresight = Foresight(network, folder=folder, settings=settings, device=device)
    data = _cached_data(
        training_cases, validation_cases, model, settings, foresight, cache_dir=cache_dir
    )
    replace_file(folder / SETTINGS, json.dumps(settings, indent=2).encode())
    with StopRequest() as stop:
        run = TrainingRun(
            folder,
            model=model,
            network=network,
            data=data,
            settings=settings,
            fingerprint=mark,
            device=device,
            stop=stop,
        )
        return _go(run, state, needed_bytes=foresight.new_step_bytes)


def _split(
    datalist: DataList, settings: Mapping[str, Any]
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return the cases to train on and those to validate on: none, if nothing is validated."""
    fold = settings["fold"]
    if settings["validation"]["every_epochs"] is not None:
        return datalist.split(fold)
    # Where the list was read for this run, the fold is not in it any more.
    return tuple(case for case in datalist.training if fold is None or case.fold != fold), ()


def _go(run: TrainingRun, state: StoredState | None, *, needed_bytes: int) -> Progress:
    with naming_shortages(
        run.settings,
        doing=lambda: f"after iteration {run.progress.iteration}",
        remedy=smaller_step(run.settings, run.device),
        device=run.device,
        needed_bytes=needed_bytes,
    ):
        if state is not None:
            run.restore(state.content)
            if state.remark:
                run.save_last()
        if run.device.type == "cpu":
            keep_freed_memory(needed_bytes, free_bytes=free_bytes(run.device))
        return run.go()


def _cached_data(
    training_cases: Sequence[Case],
    validation_cases: Sequence[Case],
    model: Model,
    settings: Mapping[str, Any],
    foresight: Foresight,
    *,
    cache_dir: Path | None,
) -> TrainingData:
    with naming_shortages(
        settings,
        doing=lambda: "while the cases were read and cached",
        remedy=smaller_cache(settings),
        device=torch.device("cpu"),
    ):
        return prepare_data(
            training_cases,
            validation_cases,
            preprocessing=model.preprocessing,
            augmentation=settings["augmentation"],
            seed=settings["seed"],
            batch_size=settings["training"]["batch_size"],
            foresight=foresight,
            cache_dir=cache_dir,
            **settings["loading"],
        )


def load_weights(
    network: torch.nn.Module, path: Path, *, header: Mapping[str, Any]
) -> Sequence[str] | None:
    """Fill `network` from a Keras file of the article or from a checkpoint of this project.

    Returns:
        The digests of the subjects that these weights were trained on; None if unknown.

    Raises:
        SettingsError: The file belongs to a network of another shape.
        DataError: The file cannot be used, or its modalities are others.
    """
    if path.suffix.lower() in (".h5", ".hdf5", ".keras"):
        load_keras_weights(path, network)
        return None
    content = load_checkpoint(path)
    require_same_modalities(header, content["header"])
    try:
        network.load_state_dict(content["weights"])
    except RuntimeError as error:
        raise SettingsError(
            f"--init-weights {path.name}: made by another network, {content['network']}. "
            "Choose its settings (--set network....)."
        ) from error
    seen: Sequence[str] | None = content.get("trained_on")
    return seen


def _build_model(
    datalist: DataList, settings: Mapping[str, Any], training_cases: Sequence[Case]
) -> tuple[Model, torch.nn.Module]:
    regions = datalist.region_classes()
    arguments = {
        "name": settings["network"]["name"],
        "in_channels": len(datalist.modalities),
        "out_channels": len(datalist.labels),
        **settings["network"]["settings"],
    }
    if settings["network"]["outputs"] == "regions":
        # Each within the one before it, where they are nested.
        arguments["regions"] = sorted(map(sorted, regions.values()), key=len, reverse=True)
    try:
        network = build_network(**arguments)
    except ValueError as error:
        raise SettingsError(f"network: {error}") from error
    preprocessing = {**settings["preprocessing"], "divisor": network.divisor}
    _require_patches_that_fit(
        settings["augmentation"]["deformation"]["patch_size"], divisor=preprocessing["divisor"]
    )
    trained_on = tuple(sorted({subject_digest(case.subject) for case in training_cases}))
    return Model(arguments, preprocessing, datalist.header(), regions, trained_on), network


def _require_patches_that_fit(patch_size: Sequence[int] | None, *, divisor: int) -> None:
    if any(edge % divisor for edge in patch_size or ()):
        raise SettingsError(
            f"augmentation.deformation.patch_size: expected multiples of {divisor}, as the network "
            f"halves an image; found {patch_size}."
        )


def _require_same_data(state: Mapping[str, Any], header: Mapping[str, Any], mark: str) -> None:
    require_same_modalities(header, state["header"])
    if state["progress"]["fingerprint"] != mark:
        raise DataError.of(
            Problem(
                case="data list",
                kind="changed-data",
                file="",
                expected="the cases, folds, codings and files that the run was started with",
                found="others",
                remedy="Resume with the same list and files, or start a new run.",
            )
        )
