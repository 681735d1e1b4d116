"""python -m benchmarks.gpu [--list DATALIST] [--device cuda] [--shape 240 240 155] [--cases 8]

Measure on one GPU what the goals G1 to G7 ask for, with the preset `original`, and write
benchmarks/results/gpu.json: volumes trained per second, the epoch of 388 cases, the forward pass,
cases segmented per second, what real data cost beside dummy data, peak memory, the preprocessing,
and a whole run with its curve. The cases are phantoms, or those of a data list. With --device cpu
and a small --shape it shows that it works; what only CUDA can tell is then left open.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import GOALS_FILTERS, Bench, Figure, describe_device
from benchmarks.machine import describe_machine
from benchmarks.tables import RESULTS, figure_row, write_table
from networks import VolumeInferer
from pipeline import make_datalist, phantom, train
from pipeline.config import build_inference_settings
from pipeline.data.datalist import read_datalist
from pipeline.data.files import replace_file
from pipeline.data.loading import LoadCase
from pipeline.inference.memory import is_out_of_memory
from pipeline.inference.segmentation import Segmenter
from pipeline.inference.session import segment_cases
from pipeline.model.checkpoint import LAST
from pipeline.model.device import choose_device
from pipeline.model.heap import settle_memory
from pipeline.model.precision import Forward, half_precision
from pipeline.model.trained import load_model
from pipeline.signals import StopRequest
from pipeline.training.run import METRICS

BRATS_TRAINING_CASES = 388  # of MONAI's tutorial
ROUNDS = 3
BATCHES = (1, 2, 4)
MOST_SEGMENTED = 64
TOLERANCE = 1e-6


def training_figures(bench: Bench) -> list[Figure]:
    """Return G1, G2, G5 and G6."""
    peak = peak_bytes(bench)
    figures = [best_rate(bench, deterministic=True), best_rate(bench, deterministic=False)]
    dummy, cached = bench.dummy_batches(1), bench.cached_batches()
    pairs = [(bench.step_seconds(dummy), bench.step_seconds(cached)) for _ in range(ROUNDS)]
    epoch = BRATS_TRAINING_CASES * statistics.median(seconds for _, seconds in pairs)
    slowdown = statistics.median(ours / least for least, ours in pairs)
    return [
        *figures,
        Figure("G2", f"epoch of {BRATS_TRAINING_CASES} cases", epoch, "s", 15.0),
        Figure("G5", "step with cached data / with dummy data", slowdown, "", 1.02),
        Figure(
            "G6",
            "peak memory of training, batch 1",
            None if peak is None else peak / 1e9,
            "GB",
            5.0,
        ),
    ]


def peak_bytes(bench: Bench) -> int | None:
    """Return what training with one case a batch takes of the device at most; None off CUDA."""
    if bench.device.type != "cuda":
        return None
    bench.release()
    torch.cuda.reset_peak_memory_stats(bench.device)
    bench.step_seconds(bench.dummy_batches(1))
    return torch.cuda.max_memory_allocated(bench.device)


def best_rate(bench: Bench, *, deterministic: bool) -> Figure:
    """Return G1; a batch that does not fit into the device's memory is told."""
    rates: dict[int, float] = {}
    too_large = ""
    for size in BATCHES:
        try:
            batches = bench.dummy_batches(size)
            rates[size] = size / bench.step_seconds(batches, deterministic=deterministic)
        except RuntimeError as error:
            if not rates or not is_out_of_memory(error):
                raise
            too_large = f"; {size} is more than the memory holds"
            break
    kernels = "deterministic kernels, as by default" if deterministic else "the quickest kernels"
    what = f"volumes trained per second, best of batches of {', '.join(map(str, rates))}"
    return Figure("G1", f"{what}{too_large}; {kernels}", max(rates.values()), "1/s", 30.0, True)


def inference_figures(bench: Bench) -> list[Figure]:
    """Return G3, and G4 with the network that was trained."""
    # Training has asked for deterministic kernels, which segmenting does not.
    torch.set_deterministic_debug_mode("default")
    image = bench.item["image"].as_tensor()[None].to(bench.device)
    network = bench.network().to(bench.device).eval()
    precision = half_precision(bench.device, amp=True)
    forward = Forward(precision, VolumeInferer(divisor=bench.divisor))
    with torch.no_grad():
        forward_s = bench.seconds_of(lambda: forward(image, network))
    cases = (*bench.training, *bench.validation)[:MOST_SEGMENTED]
    rates = [segmented_per_second(bench, cases, number) for number in range(1 + ROUNDS)]
    return [
        Figure("G3", "forward pass of a whole volume", 1000 * forward_s, "ms", 12.0),
        Figure(
            "G4",
            f"cases from files to masks, {len(cases)} in turn, network loaded before",
            statistics.median(rates[1:]),
            "1/s",
            20.0,
            True,
        ),
    ]


def segmented_per_second(bench: Bench, cases: Sequence[Any], number: int) -> float:
    """Segment `cases` as `pipeline.infer` does, into a folder of their own."""
    folder = bench.folder / f"masks{number}"
    folder.mkdir()
    segmenter = Segmenter(
        [load_model(bench.folder / "run" / LAST)],
        folder=folder,
        settings=build_inference_settings({}).model_dump(mode="json"),
        labels=bench.datalist.labels,
        device=bench.device,
        num_cases=len(cases),
    )
    start = time.perf_counter()
    outcome = segment_cases(cases, segmenter=segmenter, stop=StopRequest())
    seconds = time.perf_counter() - start
    assert len(outcome.records) == len(cases), outcome.problems
    return len(cases) / seconds


def preprocessing_figures(bench: Bench) -> list[Figure]:
    """Return G7; what the device computes must be what the processor does."""
    chain = bench.preprocessing(("image",))
    image = LoadCase(labels=False)(bench.training[0])["image"]
    there = image.to(bench.device)
    expected = chain({"image": image})["image"].as_tensor()
    found = chain({"image": there})["image"].as_tensor().cpu()
    error = (expected - found).abs().max().item()
    assert error <= TOLERANCE, f"preprocessing on {bench.device}: {error:.1e} from the processor's"
    seconds = bench.seconds_of(lambda: chain({"image": there}))
    return [
        Figure("G7", f"preprocessing of a case, equal to {error:.1e}", 1000 * seconds, "ms", 1.0)
    ]


def preset_run(bench: Bench) -> dict[str, Any]:
    """Train as `pipeline.train` does, all epochs of the preset, and return the curve."""
    folder = bench.folder / "run"
    network = f'network.settings={{"num_filters": {bench.filters}}}'
    words = [bench.datalist.path, "--output-dir", folder, "--set", network]
    start = time.perf_counter()
    run_verb(train, *words, "--device", bench.device)
    seconds = time.perf_counter() - start
    with (folder / METRICS).open(newline="") as file:
        curve = [
            {name: None if value in ("", "nan") else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return {
        "training_cases": len(bench.training),
        "validation_cases": len(bench.validation),
        "seconds": seconds,
        "curve": curve,
    }


def run_verb(verb: Any, *words: object) -> None:
    """Run a verb of the pipeline in this process."""
    assert verb.main(list(map(str, words))) == 0, words


def make_phantoms(folder: Path, *, num_cases: int, shape: Sequence[int]) -> Path:
    """Make two folds of `num_cases` phantoms each, and return their list."""
    path = folder / "datalist.json"
    run_verb(phantom, folder, "--cases", 2 * num_cases, "--shape", *shape, "--spacing", 1)
    run_verb(make_datalist, folder, "-o", path, "--folds", 2)
    return path


def measure(bench: Bench) -> dict[str, Any]:
    """Return the machine, the run and all figures as plain JSON values."""
    machine = describe_machine() | describe_device(bench)
    run = preset_run(bench)
    bench.release()
    figures = [
        figure.to_dict(goals_hold=bench.goals_hold)
        for figures_of in (training_figures, inference_figures, preprocessing_figures)
        for figure in figures_of(bench)
    ]
    return {
        "machine": machine,
        "input": list(bench.item["image"].shape),
        "filters": bench.filters,
        "run": run,
        "figures": sorted(figures, key=lambda figure: figure["key"]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", type=Path, metavar="DATALIST", help="instead of phantoms")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155), help="of phantoms")
    parser.add_argument("--cases", type=int, default=8, help="phantoms per fold (default: 8)")
    parser.add_argument("--filters", type=int, default=GOALS_FILTERS, help="default: the article's")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args(argv)
    settle_memory()
    device = choose_device(arguments.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed = arguments.list or make_phantoms(
            folder / "cohort", num_cases=arguments.cases, shape=arguments.shape
        )
        datalist = read_datalist(listed)
        bench = Bench(folder, device=device, datalist=datalist, filters=arguments.filters)
        content = {"data": datalist.name if arguments.list else "phantoms", **measure(bench)}
    for figure in content["figures"]:
        print(figure_row(figure))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(arguments.output, json.dumps(content, indent=1).encode())
    if arguments.output.resolve().parent == RESULTS:
        write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
