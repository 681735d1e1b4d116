"""Trained models for the tests: tiny networks, all of whose weights are random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import LABELS, MODALITIES

from networks import build_network
from pipeline.config import build_settings
from pipeline.model.checkpoint import FORMAT, save_checkpoint

HEADER = {
    "name": "tests",
    "modality": list(MODALITIES),
    "labels": LABELS,
    "regions": {
        "WT": ["necrotic_core", "oedema", "enhancing_tumour"],
        "TC": ["necrotic_core", "enhancing_tumour"],
        "ET": ["enhancing_tumour"],
    },
}
SEED = 16  # of weights with which all classes occur in the cases of conftest.py
UNET = {"name": "UNet3D", "num_levels": 2, "num_filters": 2}
ROW = {"epoch": 1, "iteration": 6, "dice_mean": 0.5, "dice_WT": 0.7, "background_dice_WT": 0.0}


def save_model(
    folder: Path,
    *,
    network: dict[str, Any] = UNET,
    preprocessing: dict[str, Any] | None = None,
    header: dict[str, Any] = HEADER,
    seed: int = SEED,
    name: str = "best.pt",
    **content: Any,
) -> Path:
    """Write a run's folder with one checkpoint and return the folder.

    `preprocessing` are arguments of `build_preprocessing`, the divisor excepted; `content` goes
    into the checkpoint as it is.
    """
    arguments: dict[str, Any] = {
        "in_channels": len(header["modality"]),
        "out_channels": len(header["labels"]),
    }
    arguments |= network
    built = build_network(**arguments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        folder / name,
        {
            "format": FORMAT,
            "weights": built.state_dict(),
            "network": arguments,
            "preprocessing": {**(preprocessing or {}), "divisor": built.divisor},
            "header": header,
            "settings": build_settings().model_dump(mode="json"),
            "versions": {"torch": "2.13.0", "monai": "1.6.1"},
            "progress": {"counters": {"iteration": 6, "history": [dict(ROW)]}},
            **content,
        },
    )
    return folder
