"""What the GPU benchmark measures with: one device, the cases of a list, the preset's network."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events

from networks import build_network
from networks.layout import memory_format_of
from pipeline.config import build_settings
from pipeline.data.datalist import DataList
from pipeline.data.loading import LoadCase
from pipeline.training.data import prepare_data
from pipeline.training.engines import build_trainer
from pipeline.training.handlers import LossWatch, OptimiserStep
from pipeline.training.losses import build_loss
from pipeline.training.progress import Progress
from pipeline.training.room import Foresight
from pipeline.training.run import seed_everything
from pipeline.training.schedule import build_optimisation
from transforms import build_preprocessing

NUM_WARMUP, NUM_STEPS = 5, 20
# What the goals are about: the article's network on a case of BraTS, cropped as the article does.
GOALS_INPUT = (4, 224, 224, 144)
GOALS_FILTERS = 16
MATRIX, COPY_BYTES = 8192, 1 << 30


@dataclass(frozen=True)
class Figure:
    """One figure and its goal; `at_least` says on which side of the goal it should be.

    `value` is None where the device cannot tell it.
    """

    key: str
    what: str
    value: float | None
    unit: str
    goal: float
    at_least: bool = False

    def to_dict(self, *, goals_hold: bool) -> dict[str, Any]:
        """Return plain JSON values; whether the goal is reached only where goals hold."""
        reached = None
        if goals_hold and self.value is not None:
            reached = self.value >= self.goal if self.at_least else self.value <= self.goal
        return {**asdict(self), "reaches_goal": reached}


class Bench:
    """One device, one data list, and the network of the preset `original`."""

    def __init__(
        self, folder: Path, *, device: torch.device, datalist: DataList, filters: int
    ) -> None:
        self.folder = folder
        self.device = device
        self.datalist = datalist
        self.filters = filters
        settings = build_settings({"network": {"settings": {"num_filters": filters}}})
        self.settings = settings.model_dump(mode="json")
        self.training, self.validation = datalist.split(None)
        self.divisor = int(self.network().divisor)  # type: ignore[arg-type]  # no submodule

    @property
    def goals_hold(self) -> bool:
        """Whether this is what the goals are about."""
        is_size = tuple(self.item["image"].shape) == GOALS_INPUT
        return self.device.type == "cuda" and is_size and self.filters == GOALS_FILTERS

    def network(self) -> torch.nn.Module:
        """Return the network of the settings, on the processor."""
        settings = self.settings["network"]
        return build_network(
            settings["name"],
            in_channels=len(self.datalist.modalities),
            out_channels=len(self.datalist.labels),
            **settings["settings"],
        )

    def preprocessing(self, keys: Sequence[str]) -> Any:
        """Return the preset's chain."""
        return build_preprocessing(
            keys=keys, **self.settings["preprocessing"], divisor=self.divisor
        )

    @cached_property
    def item(self) -> dict[str, Any]:
        """The first case as it enters the network."""
        loaded = LoadCase(labels=True)(self.training[0])
        return dict(self.preprocessing(("image", "label"))(loaded))

    def dummy_batches(self, size: int) -> list[dict[str, Any]]:
        """Return one batch of `size` cases on the device, as often as there are steps."""
        batch: dict[str, Any] = {
            key: self.item[key].as_tensor().to(self.device).repeat(size, 1, 1, 1, 1)
            for key in ("image", "label")
        }
        return [batch | {"case": ["dummy"] * size}] * (NUM_WARMUP + NUM_STEPS)

    def cached_batches(self) -> Any:
        """Return the loader that trains, over an epoch of as many cases as there are steps."""
        num_cases = NUM_WARMUP + NUM_STEPS
        data = prepare_data(
            [self.training[number % len(self.training)] for number in range(num_cases)],
            self.validation[:1],
            preprocessing=self.settings["preprocessing"] | {"divisor": self.divisor},
            augmentation=self.settings["augmentation"],
            seed=self.settings["seed"],
            batch_size=1,
            foresight=Foresight(
                self.network(), folder=self.folder, settings=self.settings, device=self.device
            ),
            cache_dir=None,
            **self.settings["loading"],
        )
        data.sampler.start(epoch=1)
        return data.training

    def step_seconds(self, batches: Any, *, deterministic: bool = True) -> float:
        """Return the mean seconds of a training step over `batches`, the first ones left out.

        The mean, as a median does not see the steps that had to wait for their data.
        """
        self.release()
        training = self.settings["training"]
        seed_everything(self.settings["seed"], deterministic=deterministic)
        network = self.network()
        layout = memory_format_of(network, self.device)
        network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        optimizer, scheduler = build_optimisation(network, epoch_length=len(batches), **training)
        trainer = build_trainer(
            network,
            loader=batches,
            optimizer=optimizer,
            loss=build_loss(training["loss"], dice_smoothing=training["dice_smoothing"]),
            device=self.device,
            max_epochs=1,
            amp=training["amp"],
            accumulation_steps=1,
            handlers=[OptimiserStep(scheduler, gradient_clip=training["gradient_clip"])],
        )
        LossWatch(Progress()).attach(trainer)
        marks: list[float] = []

        def mark(_: object) -> None:
            self.wait()
            marks.append(time.perf_counter())

        trainer.add_event_handler(Events.ITERATION_COMPLETED, mark)
        trainer.run()
        return (marks[-1] - marks[NUM_WARMUP - 1]) / (len(marks) - NUM_WARMUP)

    def seconds_of(self, function: Callable[[], object]) -> float:
        """Return the median seconds of a call, after some that do not count."""
        seconds = []
        for _ in range(NUM_WARMUP + NUM_STEPS):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[NUM_WARMUP:])

    def wait(self) -> None:
        """Wait for what the device was given to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Free what earlier engines, which refer to themselves, still hold on the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def describe_device(bench: Bench) -> dict[str, Any]:
    """Return the name of the GPU and its ceilings; nothing more than its type of a processor."""
    device = bench.device
    if device.type != "cuda":
        return {"device": device.type}
    matrix = torch.rand(MATRIX, MATRIX, device=device, dtype=torch.bfloat16)
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return {
        "device": torch.cuda.get_device_name(device),
        "device_memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9,
        "cuda": torch.version.cuda,
        "bf16_tflops": 2 * MATRIX**3 / bench.seconds_of(lambda: matrix @ matrix) / 1e12,
        "device_copy_gb_per_s": COPY_BYTES / bench.seconds_of(lambda: target.copy_(source)) / 1e9,
    }
