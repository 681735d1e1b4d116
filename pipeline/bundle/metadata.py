"""configs/metadata.json: what the bundle is, in the words of MONAI's schema and in our own."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.model.bundle_files import MODEL_KEY
from pipeline.model.trained import TrainedModel

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
VERSION = "0.1.0"
# What the bundle runs with, and no less; of what setup.cfg asks for, the part that it uses.
FLOORS = {
    "monai": "1.6.1",
    "torch": "2.10",
    "numpy": "1.26",
    "nibabel": "5.2",
    "pytorch-ignite": "0.5.3",
    "fire": "0.5",
}
EINOPS = {"einops": "0.8"}  # needed by SwinUNETR only

INTENDED_USE = (
    "Research only. This is not a medical device: it must not be used for diagnosis, for planning "
    "treatment, or for any other clinical decision."
)
REFERENCES = [
    "Gafoor, M. A. 3D UNet for Brain Tumor Segmentation. 2022.",
    "Menze, B. H. et al. The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS). IEEE "
    "Transactions on Medical Imaging 34(10), 2015.",
    "Cardoso, M. J. et al. MONAI: An open-source framework for deep learning in healthcare. 2022. "
    "arXiv:2211.02701.",
]


def metadata(model: TrainedModel, *, smallest_multiple: int) -> dict[str, Any]:
    """Return the metadata; the same for the same model.

    Args:
        model: what is exported.
        smallest_multiple: see `network_data_format`.
    """
    labels = list(model.header["labels"])
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "exported"},
        "monai_version": FLOORS["monai"],
        "pytorch_version": FLOORS["torch"],
        "numpy_version": FLOORS["numpy"],
        "required_packages_version": required_packages(model),
        "supported_apps": {},
        "name": "Brain-tumour segmentation in MRI",
        "task": "Segmentation of brain tumours in multi-modal MRI",
        "description": f"{model.network['name']}, from {', '.join(model.header['modality'])} to "
        f"{', '.join(labels[1:])}; trained on {model.header['name']}",
        "authors": "the authors of brain-tumour-segmentation",
        "copyright": "the authors of brain-tumour-segmentation; Apache-2.0",
        "data_source": model.header["name"],
        "data_type": "nibabel",
        "image_classes": f"{len(model.header['modality'])} channels: "
        f"{', '.join(model.header['modality'])}",
        "label_classes": "one channel: "
        + ", ".join(f"{value} is {name}" for name, value in model.header["labels"].items()),
        "pred_classes": f"{len(labels)} channels of logits: {', '.join(labels)}",
        "eval_metrics": dict(model.scores),
        "intended_use": INTENDED_USE,
        "references": REFERENCES,
        "network_data_format": network_data_format(model, smallest_multiple=smallest_multiple),
        MODEL_KEY: model_values(model),
    }


def model_values(model: TrainedModel) -> dict[str, Any]:
    """Return the plain values of a model: all that is in a checkpoint besides its weights."""
    return {
        "network": model.network,
        "preprocessing": model.preprocessing,
        "header": model.header,
        "settings": model.settings,
        "scores": model.scores,
        "versions": model.versions,
        "trained_on": None if model.trained_on is None else list(model.trained_on),
    }


def required_packages(model: TrainedModel) -> dict[str, str]:
    """Return the least version of every package that the bundle needs."""
    return FLOORS | (EINOPS if model.network["name"] == "SwinUNETR" else {})


def network_data_format(model: TrainedModel, *, smallest_multiple: int) -> dict[str, Any]:
    """Return what goes into the network and comes out of it.

    Args:
        model: what is exported.
        smallest_multiple: how many times its divisor the network's smallest image is, 1 or 2.
    """
    divisor = model.preprocessing["divisor"]
    size = f"{divisor}*n" if smallest_multiple == 1 else f"{divisor}*(n+1)"
    shared = {
        "type": "image",
        "spatial_shape": [size] * 3,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
    }
    modalities, labels = model.header["modality"], list(model.header["labels"])
    return {
        "inputs": {
            "image": {
                **shared,
                "format": "magnitude",
                "modality": "MR",
                "num_channels": len(modalities),
                "channel_def": {str(index): name for index, name in enumerate(modalities)},
            }
        },
        "outputs": {
            "pred": {
                **shared,
                "format": "segmentation",
                "num_channels": len(labels),
                "channel_def": {str(index): name for index, name in enumerate(labels)},
            }
        },
    }


def smallest_multiple_of(model: TrainedModel) -> int:
    """Return how many times its divisor the smallest image is that the network takes: 1 or 2.

    Instance normalisation needs more than the one voxel that is left of the divisor itself.
    """
    divisor = model.preprocessing["divisor"]
    image = torch.zeros(1, model.network["in_channels"], divisor, divisor, divisor)
    try:
        with torch.no_grad():
            model.build()(image)
    except ValueError:
        return 2
    return 1
