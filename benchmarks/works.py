"""What users do with many cases, by the product itself, with a network that computes little."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.caching import SEED, SETTINGS
from benchmarks.data import MODALITIES
from benchmarks.inference import LABELS, REGIONS
from networks import build_network
from networks.layout import memory_format_of
from pipeline.config import TrainingSettings, build_inference_settings
from pipeline.data.caching import CachedCases
from pipeline.data.datalist import Case
from pipeline.data.loaders import training_loader
from pipeline.inference.memory import free_bytes
from pipeline.inference.segmentation import Segmenter
from pipeline.inference.session import segment_cases
from pipeline.model.heap import keep_freed_memory
from pipeline.model.trained import TrainedModel
from pipeline.signals import StopRequest
from pipeline.training.engines import build_trainer
from pipeline.training.handlers import LossWatch, OptimiserStep, Position
from pipeline.training.losses import build_loss
from pipeline.training.needs import predict_needs
from pipeline.training.progress import Progress
from pipeline.training.schedule import build_optimisation
from transforms import build_augmentation

CPU = torch.device("cpu")
# Of the U-Net's four levels and its volumes of full size nothing is left out; what it computes is
# the same for every case, and would only hide what the way of the data costs.
NETWORK: dict[str, Any] = {
    "name": "UNet3D",
    "in_channels": len(MODALITIES),
    "out_channels": len(LABELS),
    "num_filters": 2,
    "kernel_size": 1,
    "dropout": 0.0,
}


def light_model() -> TrainedModel:
    """Return a network that computes little, as if it had been trained."""
    torch.manual_seed(SEED)
    network = build_network(**NETWORK)
    return TrainedModel(
        name="benchmark",
        weights=network.state_dict(),
        network=NETWORK,
        preprocessing={**SETTINGS, "divisor": network.divisor},
        header={
            "name": "benchmark",
            "modality": list(MODALITIES),
            "labels": LABELS,
            "regions": REGIONS,
        },
        settings={},
        scores={},
        versions={},
        trained_on=None,
    )


def train_epoch(cases: CachedCases, model: TrainedModel) -> None:
    """Train for an epoch as `pipeline.train` does, without validation and checkpoint."""
    settings = TrainingSettings().model_dump()
    loader, sampler = training_loader(
        cases, augmentation=build_augmentation(), seed=SEED, batch_size=1, num_workers=0
    )
    network = model.build()
    network.to(memory_format=memory_format_of(network, CPU))  # type: ignore[call-overload]
    optimizer, scheduler = build_optimisation(network, epoch_length=len(loader), **settings)
    needs = predict_needs(network, image_shape=(1, *cases[0]["image"].shape))
    keep_freed_memory(needs.new_step_bytes, free_bytes=free_bytes(CPU))
    progress = Progress()
    trainer = build_trainer(
        network,
        loader=loader,
        optimizer=optimizer,
        loss=build_loss(settings["loss"]),
        device=CPU,
        max_epochs=1,
        amp=settings["amp"],
        accumulation_steps=1,
        handlers=[
            Position(sampler, seed=SEED, batch_size=1),
            OptimiserStep(scheduler, gradient_clip=None),
        ],
    )
    LossWatch(progress).attach(trainer)
    trainer.run()
    assert progress.iteration == len(cases)


def segment(cases: Sequence[Case], model: TrainedModel) -> None:
    """Segment as `pipeline.infer` does, each case in one pass, into a folder that is removed."""
    with tempfile.TemporaryDirectory() as name:
        segmenter = Segmenter(
            [model],
            folder=Path(name),
            settings=build_inference_settings({"window": None}).model_dump(mode="json"),
            labels=LABELS,
            device=CPU,
            num_cases=len(cases),
        )
        outcome = segment_cases(cases, segmenter=segmenter, stop=StopRequest())
    assert len(outcome.records) == len(cases), outcome.problems
