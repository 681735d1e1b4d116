"""The bundle's inference.json, evaluate.json and train.json."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from typing import Any

import monai.bundle

from pipeline.bundle import components as c
from pipeline.bundle.components import Config
from pipeline.model.trained import TrainedModel

# The options of `python -m monai.bundle run` itself, which no id can be called like.
RUN_OPTIONS = frozenset(inspect.signature(monai.bundle.run).parameters)
FINE_TUNING_EPOCHS = 10
# The share of Dice and of cross-entropy in each of the losses that this project trains with.
LOSS_WEIGHTS = {"cross_entropy": (0.0, 1.0), "dice": (1.0, 0.0), "dice_ce": (1.0, 1.0)}


def all_configs(model: TrainedModel, *, inferer: Config) -> dict[str, Config]:
    """Return the configurations by file name.

    Args:
        model: its plain values go in.
        inferer: the arguments of `networks.VolumeInferer`.
    """
    return {
        "inference.json": inference_config(model, inferer=inferer),
        "evaluate.json": evaluate_config(model, inferer=inferer),
        "train.json": train_config(model, inferer=inferer),
    }


def modality_ids(modalities: list[str], *, taken: Collection[str] = ()) -> dict[str, str]:
    """Return for each modality the id under which its file is given: `--flair F`.

    An id may only have letters, digits and underscores, and must not mean something else already.
    """
    ids: dict[str, str] = {}
    for name in modalities:
        identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
        while (
            not identifier[0].isalpha()
            or identifier in RUN_OPTIONS
            or identifier in taken
            or identifier in ids.values()
        ):
            identifier = f"image_{identifier}"
        ids[name] = identifier
    return ids


def inference_config(model: TrainedModel, *, inferer: Config) -> Config:
    """Return inference.json: masks of one case, or of many, on their own grids."""
    modalities = model.header["modality"]
    config = {
        **c.places("results"),
        "cases": [],
        "save_probabilities": False,
        **c.network(model),
        "network_preprocessing": c.preprocessing_of(model, keys=["image"]),
        "preprocessing": c.compose(*c.loading(modalities), "@network_preprocessing"),
        "dataset": c.dataset(model, cases="@cases", labelled=False),
        "dataloader": c.dataloader("@dataset"),
        "inferer": c.volume_inferer(inferer),
        "postprocessing": _to_files(model),
        "handlers": [c.checkpoint_loader()],
        "evaluator": c.evaluator(),
        "initialize": c.INITIALIZE,
        "run": ["$@evaluator.run()"],
    }
    ids = modality_ids(modalities, taken=config)
    files = {identifier: f"{name}.nii.gz" for name, identifier in ids.items()}
    cases = [{name: f"@{identifier}" for name, identifier in ids.items()}]
    return {**files, **config, "cases": cases}


def input_ids(config: Config) -> dict[str, str]:
    """Return for each modality the id that an inference.json gives its file."""
    return {name: reference.removeprefix("@") for name, reference in config["cases"][0].items()}


def _to_files(model: TrainedModel) -> Config:
    """Return the chain from logits to a mask in the dataset's own values, in a file."""
    return c.compose(
        c.to_own_grid(model),
        {
            "_target_": "transforms.ClassesToLabelValuesd",
            "keys": ["classes"],
            "values": list(model.label_values),
        },
        {"_target_": "transforms.NameAfterCased", "keys": ["classes", "probabilities"]},
        c.saver("classes", "seg", dtype=c.mask_dtype(model)),
        {
            **c.saver("probabilities", "probabilities", dtype="float32"),
            "_disabled_": "$not @save_probabilities",
        },
    )


def evaluate_config(model: TrainedModel, *, inferer: Config) -> Config:
    """Return evaluate.json: the region Dice of labelled cases, printed and as CSV."""
    return {
        **c.places("evaluation"),
        "cases": [],
        **c.network(model),
        "network_preprocessing": c.preprocessing_of(model, keys=["image"]),
        "preprocessing": c.compose(*c.loading_labelled(model), "@network_preprocessing"),
        "dataset": c.dataset(model, cases="@cases", labelled=True),
        "dataloader": c.dataloader("@dataset"),
        "inferer": c.volume_inferer(inferer),
        "postprocessing": c.compose(c.to_own_grid(model), c.region_masks(model)),
        "key_metric": {"dice_mean": c.dice("mean")},
        "additional_metrics": {"dice_regions": c.dice("mean_batch", names=list(model.regions))},
        "handlers": [c.checkpoint_loader(), c.metrics_printer(), c.metrics_saver(model)],
        "evaluator": {
            **c.evaluator(),
            "key_val_metric": "@key_metric",
            "additional_metrics": "@additional_metrics",
        },
        "initialize": c.INITIALIZE,
        "run": ["$@evaluator.run()"],
    }


def train_config(model: TrainedModel, *, inferer: Config) -> Config:
    """Return train.json: it goes on training from model.pt, and keeps the best by region Dice."""
    training = model.settings["training"]
    return {
        **c.places("training"),
        "cases": [],
        "fold": 0,
        "epochs": FINE_TUNING_EPOCHS,
        "val_interval": 1,
        "learning_rate": training["learning_rate"],
        **c.network(model),
        "network_preprocessing": c.preprocessing_of(model, keys=["image"]),
        "train": _train_part(model, training),
        "validate": _validate_part(model, inferer),
        "initialize": c.INITIALIZE,
        "run": ["$@train#trainer.run()"],
    }


def _train_part(model: TrainedModel, training: dict[str, Any]) -> Config:
    keys = ["image", "label"]
    return {
        "preprocessing": c.compose(
            *c.loading_labelled(model),
            c.preprocessing_of(model, keys=keys),
            {"_target_": "transforms.build_augmentation", **model.settings["augmentation"]},
            *_region_labels(model),
            {"_target_": "EnsureTyped", "keys": keys, "track_meta": False},
        ),
        "dataset": c.dataset(
            model,
            cases=_fold(held_out=False),
            labelled=True,
            transform="@train#preprocessing",
        ),
        "dataloader": c.dataloader("@train#dataset", shuffle=True),
        "inferer": {"_target_": "SimpleInferer"},
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@network.parameters()",
            "lr": "@learning_rate",
            "eps": training["adam_epsilon"],
            "weight_decay": training["weight_decay"],
        },
        "loss": _loss(model),
        "handlers": [
            c.checkpoint_loader(),
            {
                "_target_": "ValidationHandler",
                "validator": "@validate#evaluator",
                "epoch_level": True,
                "interval": "@val_interval",
            },
            {
                "_target_": "StatsHandler",
                "output_transform": {
                    "_target_": "monai.handlers.from_engine",
                    "keys": ["loss"],
                    "first": True,
                },
            },
            c.checkpoint_saver(save_final=True, final_filename="last.pt"),
        ],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@epochs",
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "optimizer": "@train#optimizer",
            "loss_function": "@train#loss",
            "inferer": "@train#inferer",
            "train_handlers": "@train#handlers",
            # A network may give several logits in training, which MONAI cannot take apart by case.
            "decollate": False,
            "amp": False,
        },
    }


def _validate_part(model: TrainedModel, inferer: Config) -> Config:
    return {
        "preprocessing": c.compose(*c.loading_labelled(model), "@network_preprocessing"),
        "dataset": c.dataset(
            model,
            cases=_fold(held_out=True),
            labelled=True,
            transform="@validate#preprocessing",
        ),
        "dataloader": c.dataloader("@validate#dataset"),
        "inferer": c.volume_inferer(inferer),
        "postprocessing": c.compose(c.to_own_grid(model), c.region_masks(model)),
        "key_metric": {"dice_mean": c.dice("mean")},
        "additional_metrics": {"dice_regions": c.dice("mean_batch", names=list(model.regions))},
        "handlers": [
            c.metrics_printer(),
            c.checkpoint_saver(save_key_metric=True, key_metric_filename="best.pt"),
        ],
        "evaluator": {
            **c.evaluator("validate#"),
            "key_val_metric": "@validate#key_metric",
            "additional_metrics": "@validate#additional_metrics",
        },
    }


def _fold(*, held_out: bool) -> Config:
    return {
        "_target_": "transforms.cases_of_fold",
        "cases": "@cases",
        "fold": "@fold",
        "held_out": held_out,
    }


def _region_labels(model: TrainedModel) -> list[Config]:
    """Return the step from a label to masks of regions, for a network with an output for each."""
    if not _is_trained_by_region(model):
        return []
    return [
        {
            "_target_": "transforms.ClassesToRegionsd",
            "keys": ["label"],
            "regions": model.deciding_regions,
        },
        {"_target_": "CastToTyped", "keys": ["label"], "dtype": "float32"},
    ]


def _is_trained_by_region(model: TrainedModel) -> bool:
    """Whether the network has an output per region in training; an ensemble has one per class."""
    return model.deciding_regions is not None and not model.is_ensemble


def _loss(model: TrainedModel) -> Config:
    """Return the model's own loss as MONAI has it, also for the logits of coarser levels."""
    training = model.settings["training"]
    dice, cross_entropy = LOSS_WEIGHTS[training["loss"]]
    loss: Config = {
        "batch": True,
        "smooth_nr": training["dice_smoothing"],
        "smooth_dr": training["dice_smoothing"],
        "lambda_dice": dice,
    }
    if not _is_trained_by_region(model):
        loss |= {
            "_target_": "DiceCELoss",
            "include_background": False,
            "to_onehot_y": True,
            "softmax": True,
            "lambda_ce": cross_entropy,
        }
    else:
        # Focal loss without focus is the binary cross-entropy.
        loss |= {
            "_target_": "DiceFocalLoss",
            "sigmoid": True,
            "gamma": 0.0,
            "lambda_focal": cross_entropy,
        }
    if model.is_ensemble or not model.network.get("deep_supervision"):
        return loss
    return {"_target_": "DeepSupervisionLoss", "loss": loss}
