"""The first half of the gate: every file, tensor and setting of a bundle is the model's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline.bundle.components import Config
from pipeline.bundle.contents import SAFETENSORS, SUMS, WEIGHTS, source_files
from pipeline.bundle.problems import problem
from pipeline.data.json_files import read_json
from pipeline.model.trained import TrainedModel

CONFIGS = ("inference.json", "evaluate.json", "train.json")
NUM_NAMED = 5  # of many files or tensors that differ
NOTHING = "nothing"
READERS: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    WEIGHTS: partial(torch.load, map_location="cpu", weights_only=True),
    SAFETENSORS: safetensors.torch.load_file,
}


def check_sums(folder: Path) -> None:
    """Compare SHA256SUMS with all files that are there; DataError names those that differ."""
    sums = folder / SUMS
    lines = sums.read_text(errors="replace").splitlines() if sums.is_file() else []
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    found.pop(SUMS, None)
    _require_equal("sums", found, expected, what="the files and digests of SHA256SUMS")


def check_sources(folder: Path) -> None:
    """Compare transforms/ and networks/ with the packages that trained; DataError names files."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for package in ("transforms", "networks")
        for path in (folder / package).rglob("*")
        if path.is_file()
    }
    _require_equal("sources", found, source_files(), what="the installed packages' files")


def check_weights(folder: Path, model: TrainedModel, *, half_precision: bool = False) -> None:
    """Compare both files of weights with the model's; DataError names file and tensors.

    With `half_precision` they are float16, and nothing was lost by it.
    """
    same = partial(_same, half_precision=half_precision)
    for file, read in READERS.items():
        try:
            tensors = read(folder / file)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise problem("weights", file=file, expected="tensors", found=found) from error
        names = sorted(set(tensors) | set(model.weights))
        wrong = [name for name in names if not same(tensors.get(name), model.weights.get(name))]
        if wrong:
            raise problem(
                "weights",
                file=file,
                expected="the tensors of the checkpoint",
                found=f"other values, or none, in {_some(wrong)}",
            )


def check_configs(folder: Path, model: TrainedModel, *, inferer: Config) -> None:
    """Compare what the configurations build with the model's values.

    Raises:
        DataError: an argument differs, named by its place, or a component is missing.
    """
    for name in CONFIGS:
        config = read_json(folder / "configs" / name)
        seen: set[str] = set()
        for place, component in _components(config):
            target = component["_target_"]
            expected = _arguments(target, model, inferer)
            if expected is not None:
                seen.add(target)
                _require_arguments(f"configs/{name}", place, component, _plain(expected))
        missing = {"networks.build_network", "transforms.build_preprocessing", "ConcatItemsd"}
        missing |= {"networks.VolumeInferer", "transforms.build_postprocessing"}
        missing -= seen
        if missing:
            raise problem(
                "config",
                file=f"configs/{name}",
                expected=f"the components {', '.join(sorted(missing))}",
                found=NOTHING,
            )


def _arguments(target: str, model: TrainedModel, inferer: Config) -> Config | None:
    """Return the arguments that a component must have, None where any will do."""
    values = list(model.label_values)
    modalities = model.header["modality"]
    required: dict[str, Config] = {
        "networks.build_network": model.network,
        "networks.VolumeInferer": inferer,
        "transforms.build_preprocessing": model.preprocessing,
        "transforms.build_postprocessing": (
            {} if model.deciding_regions is None else {"regions": model.deciding_regions}
        ),
        "transforms.build_augmentation": model.settings["augmentation"],
        "transforms.ClassesToLabelValuesd": {"values": values},
        "transforms.LabelValuesToClassesd": {"values": values},
        "transforms.ClassesToRegionsd": {"regions": list(model.regions.values())},
        "transforms.named_cases": {"modalities": modalities},
        "ConcatItemsd": {"keys": modalities},
    }
    return required.get(target)


def _require_arguments(file: str, place: str, component: Config, expected: Config) -> None:
    """Compare one component; in those whose arguments are all the model's, more is wrong too."""
    others = {"_target_", "keys", "preprocessing"}
    whole = component["_target_"].startswith(("networks.", "transforms.build_"))
    keys = set(expected) | (set(component) - others if whole else set())
    for key in sorted(keys):
        wanted, found = expected.get(key, NOTHING), component.get(key, NOTHING)
        if wanted != found or type(wanted) is not type(found):
            raise problem(
                "config",
                file=file,
                expected=f"{place}#{key} = {wanted!r}, as in the checkpoint",
                found=repr(found),
            )


def _components(node: Any, place: str = "") -> Iterator[tuple[str, Config]]:
    """Yield every component of a configuration with its id, as MONAI writes it."""
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        yield place, node
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, item in items:
        if isinstance(item, (dict, list)):
            yield from _components(item, f"{place}#{key}" if place else str(key))


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples are lists there."""
    return json.loads(json.dumps(value))


def _same(stored: torch.Tensor | None, own: torch.Tensor | None, *, half_precision: bool) -> bool:
    if stored is None or own is None:
        return False
    halved = half_precision and own.dtype == torch.float32
    dtype = torch.float16 if halved else own.dtype
    return stored.dtype == dtype and torch.equal(stored.to(own.dtype), own)


def _require_equal(
    kind: str, found: Mapping[str, object], expected: Mapping[str, object], *, what: str
) -> None:
    names = sorted(set(found) | set(expected))
    wrong = [name for name in names if found.get(name) != expected.get(name)]
    if wrong:
        raise problem(
            kind, file=_some(wrong), expected=what, found="other content, or a file too many or few"
        )


def _some(names: list[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
