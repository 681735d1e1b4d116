"""Every file of a bundle, as bytes by name: the same model gives the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import networks
import transforms
from pipeline.bundle.components import Config
from pipeline.bundle.configs import all_configs, input_ids
from pipeline.bundle.conversion import converted
from pipeline.bundle.documents import LICENCE, licence_text, model_card, readme
from pipeline.bundle.inert import require_inert, require_usable_modalities
from pipeline.bundle.metadata import metadata, model_values, smallest_multiple_of
from pipeline.bundle.weights import in_half_precision, safetensors_bytes, weights_bytes
from pipeline.data.json_files import json_bytes
from pipeline.model.bundle_files import METADATA, SUMS
from pipeline.model.bundle_files import WEIGHTS as SAFETENSORS
from pipeline.model.trained import TrainedModel

WEIGHTS = "models/model.pt"
CONVERTED = {"torchscript": "models/model.ts", "onnx": "models/model.onnx"}


def bundle_files(
    model: TrainedModel,
    *,
    inferer: Config,
    formats: Sequence[str] = (),
    half_precision: bool = False,
    notes: str | None = None,
) -> dict[str, bytes]:
    """Return the content of the bundle by relative path, SHA256SUMS last.

    Args:
        model: what is exported.
        inferer: arguments of `networks.VolumeInferer`.
        formats: keys of `CONVERTED` that it has besides.
        half_precision: store float16, which has to hold all weights as they are (`rounded`).
        notes: Markdown for the model card.

    Raises:
        DataError: the model holds what MONAI would execute.
        SettingsError: a conversion is not possible.
    """
    require_inert("model", model_values(model))
    require_usable_modalities(model.header["modality"])
    weights = in_half_precision(model.weights) if half_precision else model.weights
    files = {**_models(model, weights=weights, formats=formats), **source_files()}
    configs = all_configs(model, inferer=inferer)
    for name, config in configs.items():
        files[f"configs/{name}"] = json_bytes(config)
    described = metadata(model, smallest_multiple=smallest_multiple_of(model))
    files[METADATA] = json_bytes(described)
    models = [Path(name).name for name in files if name.startswith("models/")]
    ids = input_ids(configs["inference.json"])
    files["docs/README.md"] = readme(model, ids=ids, models=models).encode()
    files["README.md"] = model_card(model, half_precision=half_precision, notes=notes).encode()
    files[LICENCE] = licence_text()
    return {**dict(sorted(files.items())), SUMS: sums_of(files)}


def source_files() -> dict[str, bytes]:
    """Return the two packages that a bundle carries, `transforms` and `networks`, unchanged."""
    return {
        f"{package.__name__}/{path.name}": path.read_bytes()
        for package in (transforms, networks)
        for path in sorted(Path(str(package.__file__)).parent.glob("*.py"))
    }


def sums_of(files: dict[str, bytes]) -> bytes:
    """Return SHA256SUMS, which `sha256sum -c` takes."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return "".join(lines).encode()


def _models(
    model: TrainedModel, *, weights: Mapping[str, torch.Tensor], formats: Sequence[str]
) -> dict[str, bytes]:
    """Return the files of weights; the conversions fill a network in float32 with them."""
    stored = weights_bytes(weights)
    files = {WEIGHTS: stored, SAFETENSORS: safetensors_bytes(weights)}
    for name, content in converted(network=model.network, weights=stored, formats=formats).items():
        files[CONVERTED[name]] = content
    return files
