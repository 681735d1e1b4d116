"""The components of the bundle's configurations, as MONAI's ConfigParser takes them."""

from __future__ import annotations

from typing import Any

from pipeline.model.trained import TrainedModel

Config = dict[str, Any]

DEVICE = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
INITIALIZE = [{"_target_": "monai.utils.set_determinism", "seed": 0}]
UINT8_MAX = 255


def places(output: str) -> Config:
    """Return where things are, and the folder for what the configuration makes."""
    return {
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": f"$@bundle_root + '/{output}'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "device": DEVICE,
    }


def network(model: TrainedModel) -> Config:
    """Return the network, on its device and without its weights."""
    return {
        "network_def": {"_target_": "networks.build_network", **model.network},
        "network": {"_target_": "$@network_def.to", "device": "@device"},
    }


def preprocessing_of(model: TrainedModel, *, keys: list[str]) -> Config:
    """Return the chain that the network was trained with."""
    return {"_target_": "transforms.build_preprocessing", "keys": keys, **model.preprocessing}


def compose(*steps: Config | str) -> Config:
    """Return a chain of components, or of references to them."""
    return {"_target_": "Compose", "transforms": list(steps)}


def loading(modalities: list[str], *, label_keys: tuple[str, ...] = ()) -> list[Config]:
    """Return the steps from files to `image` (C, X, Y, Z), and any labels (1, X, Y, Z)."""
    keys = [*modalities, *label_keys]
    return [
        {"_target_": "LoadImaged", "keys": keys, "dtype": "float32"},
        {"_target_": "EnsureChannelFirstd", "keys": keys},
        {"_target_": "transforms.RequireSameGridd", "keys": keys},
        {"_target_": "transforms.RequireFinited", "keys": keys},
        {"_target_": "ConcatItemsd", "keys": modalities, "name": "image", "dim": 0},
        # What is in `image` need not be kept twice.
        {"_target_": "DeleteItemsd", "keys": modalities},
    ]


def loading_labelled(model: TrainedModel) -> list[Config]:
    """Return the steps from files to `image`, and `label` as class indices."""
    return [
        *loading(model.header["modality"], label_keys=("label",)),
        {
            "_target_": "transforms.LabelValuesToClassesd",
            "keys": ["label"],
            "values": list(model.label_values),
        },
    ]


def dataset(
    model: TrainedModel,
    *,
    cases: Config | str,
    labelled: bool,
    transform: str = "@preprocessing",
) -> Config:
    """Return the dataset of the entries `cases`."""
    return {
        "_target_": "Dataset",
        "data": {
            "_target_": "transforms.named_cases",
            "cases": cases,
            "modalities": model.header["modality"],
            "folder": "@dataset_dir",
            "labelled": labelled,
        },
        "transform": transform,
    }


def dataloader(cases: str, *, shuffle: bool = False) -> Config:
    """Return the loader of a dataset, one case at a time."""
    return {
        "_target_": "DataLoader",
        "dataset": cases,
        "batch_size": 1,
        "shuffle": shuffle,
        "num_workers": 0,
    }


def to_own_grid(model: TrainedModel) -> Config:
    """Return the step from logits to `probabilities` and `classes` on the case's own grid."""
    deciding: Config = {} if model.deciding_regions is None else {"regions": model.deciding_regions}
    return {
        "_target_": "transforms.build_postprocessing",
        "preprocessing": "@network_preprocessing",
        **deciding,
    }


def region_masks(model: TrainedModel) -> Config:
    """Return the step from class indices to one mask per region."""
    return {
        "_target_": "transforms.ClassesToRegionsd",
        "keys": ["classes", "label"],
        "regions": [list(classes) for classes in model.regions.values()],
    }


def dice(reduction: str, *, names: list[str] | None = None) -> Config:
    """Return MONAI's Dice of the regions; where both masks are empty, it is 1.

    MONAI's own `MeanDice` cannot be told so, and would leave such cases out of the mean.
    """
    metric: Config = {
        "_target_": "DiceMetric",
        "include_background": True,
        "reduction": reduction,
        "ignore_empty": False,
    }
    if names is not None:
        metric["return_with_label"] = [f"dice_{name}" for name in names]
    keys = ["classes", "label"]
    return {
        "_target_": "IgniteMetricHandler",
        "metric_fn": metric,
        "output_transform": {"_target_": "monai.handlers.from_engine", "keys": keys},
    }


def metrics_printer() -> Config:
    """Return the handler that prints an evaluator's metrics, and nothing for each case."""
    return {"_target_": "StatsHandler", "iteration_log": False}


def metrics_saver(model: TrainedModel) -> Config:
    """Return the handler that writes metrics.csv, and dice_mean_raw.csv with a row per case."""
    return {
        "_target_": "MetricsSaver",
        "save_dir": "@output_dir",
        "metrics": ["dice_mean", *(f"dice_{name}" for name in model.regions)],
        "metric_details": ["dice_mean"],
    }


def checkpoint_saver(**when: bool | str) -> Config:
    """Return the handler that saves the weights alone, so that inference.json can take them."""
    return {
        "_target_": "CheckpointSaver",
        "save_dir": "@output_dir",
        "save_dict": {"model": "@network"},
        **when,
    }


def checkpoint_loader() -> Config:
    """Return the handler that loads the weights at the start, as data and not as code."""
    return {
        "_target_": "CheckpointLoader",
        "load_path": "@ckpt_path",
        "load_dict": {"model": "@network"},
        "map_location": "@device",
    }


def volume_inferer(arguments: Config) -> Config:
    """Return what applies the network to a volume."""
    return {"_target_": "networks.VolumeInferer", **arguments}


def evaluator(part: str = "") -> Config:
    """Return the engine that passes every case through network and postprocessing.

    `part` stands before the ids of its components: `validate#` in train.json.
    """
    return {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": f"@{part}dataloader",
        "network": "@network",
        "inferer": f"@{part}inferer",
        "postprocessing": f"@{part}postprocessing",
        "val_handlers": f"@{part}handlers",
        "amp": False,
    }


def saver(key: str, postfix: str, *, dtype: str) -> Config:
    """Return the step that writes `<case>_<postfix>.nii.gz` as it is, on its own grid."""
    return {
        "_target_": "SaveImaged",
        "keys": [key],
        "output_dir": "@output_dir",
        "output_postfix": postfix,
        "output_ext": ".nii.gz",
        "output_dtype": dtype,
        "resample": False,
        "separate_folder": False,
        # Named, because MONAI would try others after an error, which do not report a full disk.
        "writer": "NibabelWriter",
    }


def mask_dtype(model: TrainedModel) -> str:
    """Return the type of a mask: uint8 where it holds all label values."""
    return "uint8" if max(model.label_values) <= UINT8_MAX else "int32"
