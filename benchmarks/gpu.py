"""python -m benchmarks.gpu [--device cuda] [--shape 240 240 155] [--cases 8] [--filters 16]

Measure on one GPU what the goals G1 to G7 ask for, with the preset `original` on phantoms, and
write benchmarks/results/gpu.json: volumes trained per second, the epoch of 388 cases, the forward
pass, cases segmented per second, what real data cost beside dummy data, peak memory, and the
preprocessing. With --device cpu and a small --shape it shows that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine
from benchmarks.tables import RESULTS, write_table
from networks import VolumeInferer, build_network
from pipeline import infer, make_datalist, phantom, train
from pipeline.config import build_settings
from pipeline.data.datalist import DataList, read_datalist
from pipeline.data.files import replace_file
from pipeline.data.loading import LoadCase
from pipeline.model.device import choose_device
from pipeline.training.data import prepare_data
from pipeline.training.engines import build_trainer
from pipeline.training.losses import build_loss
from pipeline.training.schedule import build_optimisation
from transforms import build_preprocessing

BRATS_TRAINING_CASES = 388  # of MONAI's tutorial
NUM_WARMUP, NUM_STEPS = 5, 20
BATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Figure:
    """One figure and its goal; `at_least` says on which side of the goal it should be."""

    key: str
    what: str
    value: float
    unit: str
    goal: float
    at_least: bool = False

    @property
    def reaches_goal(self) -> bool:
        """Whether it does."""
        return self.value >= self.goal if self.at_least else self.value <= self.goal


class Bench:
    """One device, one size of case, one network."""

    def __init__(
        self, folder: Path, *, device: torch.device, shape: Sequence[int], cases: int, filters: int
    ) -> None:
        self.folder = folder
        self.device = device
        self.shape = tuple(shape)
        self.num_cases = cases
        self.options = ["--set", f'network.settings={{"num_filters": {filters}}}']
        self.settings = build_settings(
            {"network": {"settings": {"num_filters": filters}}}
        ).model_dump(mode="json")
        self.list = folder / "cohort" / "datalist.json"
        self.divisor = int(self.network().divisor)  # type: ignore[arg-type]  # no submodule

    def prepare(self) -> DataList:
        """Make the phantoms, two folds of them."""
        size = ["--cases", str(2 * self.num_cases), "--shape", *map(str, self.shape)]
        self._verb(phantom, [str(self.list.parent), *size, "--spacing", "1"])
        self._verb(make_datalist, [str(self.list.parent), "-o", str(self.list), "--folds", "2"])
        return read_datalist(self.list)

    def network(self) -> torch.nn.Module:
        """Return the network of the settings, on the device."""
        settings = self.settings["network"]
        network = build_network(
            settings["name"], in_channels=4, out_channels=4, **settings["settings"]
        )
        return network.to(self.device)

    def preprocessing(self, keys: Sequence[str]) -> Any:
        """Return the preset's chain."""
        return build_preprocessing(
            keys=keys, **self.settings["preprocessing"], divisor=self.divisor
        )

    def item(self, datalist: DataList) -> dict[str, Any]:
        """Return the first case as it enters the network."""
        return self.preprocessing(("image", "label"))(LoadCase(labels=True)(datalist.training[0]))

    def step_seconds(self, batches: Sequence[Any] | RealBatches) -> float:
        """Return the median seconds of a training step over `batches`, the first ones left out."""
        training = self.settings["training"]
        network = self.network()
        optimizer, _ = build_optimisation(network, epoch_length=len(batches), **training)
        marks: list[float] = []
        trainer = build_trainer(
            network,
            loader=batches,  # type: ignore[arg-type]  # what is iterable and has a length
            optimizer=optimizer,
            loss=build_loss(training["loss"], dice_smoothing=training["dice_smoothing"]),
            device=self.device,
            max_epochs=1,
            amp=training["amp"],
            accumulation_steps=1,
            handlers=[],
        )

        def mark(_: object) -> None:
            self.wait()
            marks.append(time.perf_counter())

        trainer.add_event_handler("iteration_completed", mark)
        trainer.run()
        seconds = [after - before for before, after in pairwise(marks)]
        return statistics.median(seconds[NUM_WARMUP - 1 :])

    def seconds_of(self, function: Callable[[], object]) -> float:
        """Return the median seconds of a call, after some that do not count."""
        seconds = []
        for number in range(NUM_WARMUP + NUM_STEPS):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            if number >= NUM_WARMUP:
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def wait(self) -> None:
        """Wait for what the device was given to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run_verb(self, verb: Any, argv: Sequence[str]) -> None:
        """Run a verb of the pipeline on the device."""
        self._verb(verb, [*argv, "--device", str(self.device)])

    @staticmethod
    def _verb(verb: Any, argv: Sequence[str]) -> None:
        assert verb.main(list(argv)) == 0, argv


def training_figures(bench: Bench, datalist: DataList) -> list[Figure]:
    """Return G1, G2, G5 and G6."""
    item = bench.item(datalist)
    image, label = (item[key].as_tensor()[None] for key in ("image", "label"))
    rates, peak = [], 0
    for size in BATCHES:
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        batch = {
            "image": image.expand(size, -1, -1, -1, -1).contiguous().to(bench.device),
            "label": label.expand(size, -1, -1, -1, -1).contiguous().to(bench.device),
        }
        rates.append(size / bench.step_seconds([batch] * (NUM_WARMUP + NUM_STEPS)))
        if bench.device.type == "cuda" and size == 1:
            peak = torch.cuda.max_memory_allocated(bench.device)
    dummy = 1 / rates[0]
    real = bench.step_seconds(RealBatches(bench, datalist))
    rate = max(rates)
    return [
        Figure(
            "G1", f"volumes trained per second, best of batches {BATCHES}", rate, "1/s", 30.0, True
        ),
        Figure(
            "G2", f"epoch of {BRATS_TRAINING_CASES} cases", BRATS_TRAINING_CASES * real, "s", 15.0
        ),
        Figure("G5", "step with cached data / with dummy data", real / dummy, "", 1.02),
        Figure("G6", "peak memory of training, batch 1", peak / 1e9, "GB", 5.0),
    ]


class RealBatches:
    """The batches of the product's own loader, as many as are measured."""

    def __init__(self, bench: Bench, datalist: DataList) -> None:
        training, validation = datalist.split(0)
        self.data = prepare_data(
            training,
            validation,
            preprocessing=bench.settings["preprocessing"] | {"divisor": bench.divisor},
            augmentation=bench.settings["augmentation"],
            seed=0,
            batch_size=1,
            foresight=lambda *_, **__: 0,  # type: ignore[arg-type]  # what it would say is measured
            cache_dir=None,
            **bench.settings["loading"],
        )

    def __len__(self) -> int:
        return NUM_WARMUP + NUM_STEPS

    def __iter__(self) -> Any:
        number = epoch = 0
        while number < len(self):
            epoch += 1
            self.data.sampler.start(epoch=epoch)
            for batch in self.data.training:
                yield batch
                number += 1
                if number == len(self):
                    return


def inference_figures(bench: Bench, datalist: DataList) -> list[Figure]:
    """Return G3 and G4."""
    image = bench.item(datalist)["image"].as_tensor()[None].to(bench.device)
    network = bench.network().eval()
    inferer = VolumeInferer(divisor=bench.divisor)
    with torch.no_grad():
        forward = bench.seconds_of(lambda: inferer(image, network))
    run = bench.folder / "run"
    one_epoch = ["--set", "training.max_epochs=1", *bench.options]
    bench.run_verb(train, [str(bench.list), "--fold", "0", "--output-dir", str(run), *one_epoch])
    masks = bench.folder / "masks"
    start = time.perf_counter()
    bench.run_verb(infer, ["-m", str(run), str(bench.list), "-o", str(masks)])
    seconds = time.perf_counter() - start
    return [
        Figure("G3", "forward pass of a whole volume", 1000 * forward, "ms", 12.0),
        Figure(
            "G4",
            "cases from files to masks, start included",
            len(datalist.training) / seconds,
            "1/s",
            20.0,
            True,
        ),
    ]


def preprocessing_figures(bench: Bench, datalist: DataList) -> list[Figure]:
    """Return G7; what the device computes must be what the processor does."""
    chain = bench.preprocessing(("image",))
    image = LoadCase(labels=False)(datalist.training[0])["image"]
    there = image.to(bench.device)
    expected = chain({"image": image})["image"].as_tensor()
    found = chain({"image": there})["image"].as_tensor().cpu()
    error = (expected - found).abs().max().item()
    assert error <= 1e-6, error
    seconds = bench.seconds_of(lambda: chain({"image": there}))
    return [
        Figure("G7", f"preprocessing of a case, equal to {error:.1e}", 1000 * seconds, "ms", 1.0)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--cases", type=int, default=8, help="per fold (default: 8)")
    parser.add_argument("--filters", type=int, default=16, help="default: 16, the article's")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args(argv)
    device = choose_device(arguments.device)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder),
            device=device,
            shape=arguments.shape,
            cases=arguments.cases,
            filters=arguments.filters,
        )
        datalist = bench.prepare()
        for measured in (training_figures, inference_figures, preprocessing_figures):
            figures += measured(bench, datalist)
    for figure in figures:
        reached = "reached" if figure.reaches_goal else "missed"
        value = f"{figure.value:.4g} {figure.unit}"
        print(f"{figure.key} {figure.what}: {value} (goal {figure.goal:g}: {reached})")
    content = {
        "machine": {**describe_machine(), "device": _name(device)},
        "shape": list(arguments.shape),
        "filters": arguments.filters,
        "figures": [{**asdict(each), "reaches_goal": each.reaches_goal} for each in figures],
    }
    replace_file(arguments.output, json.dumps(content, indent=1).encode())
    write_table()
    return 0


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"


if __name__ == "__main__":
    sys.exit(main())
