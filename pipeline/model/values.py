"""Judges what a checkpoint or a bundle says, value by value, before anything is built from it.

Both come from strangers: a value of the wrong type would else end somewhere deep inside with a
TypeError, and a large number with all memory taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from networks import NETWORKS
from pipeline.config import build_settings
from pipeline.data.datalist_fields import Findings
from pipeline.data.datalist_header import HEADER_KEYS, read_header
from pipeline.errors import DataError, Problem, SettingsError

PLAIN = ("network", "preprocessing", "header", "settings", "versions", "scores")
MAX_COST = 2**20  # values and letters; a model has a few thousand
MAX_DEPTH = 12
MAX_INTEGER = 2**53  # beyond it JSON's readers disagree
MAX_NETWORK_NUMBER = 4096  # no network has as many levels, or filters in a layer
SUBJECT_DIGEST = re.compile(r"[0-9a-f]{16}")
REMEDY = "Name a run, a checkpoint or a bundle of this project; export or copy it again."


def judged_values(values: Mapping[str, Any], *, name: str, max_weight_bytes: int) -> dict[str, Any]:
    """Return the fields of `TrainedModel`, its name excepted, where all are what they have to be.

    Settings that are missing have their defaults: they came later. `name` is for the message.

    Raises:
        DataError: A value has the wrong type, is too large, or contradicts another.
    """
    for key in PLAIN:
        _require(isinstance(values[key], dict), name, key, "an object", values[key])
        require_plain(values[key], name=name, key=key)
    _judge_weights(values["weights"], name, max_weight_bytes)
    _judge_header(values["header"], name)
    _judge_network(values["network"], values["header"], name)
    _judge_preprocessing(values["preprocessing"], name)
    _judge_provenance(values, name)
    trained_on = values["trained_on"]
    return {
        **values,
        "settings": _settings(values["settings"], name),
        "trained_on": None if trained_on is None else tuple(trained_on),
    }


def require_plain(value: Any, *, name: str, key: str, finite: bool = True) -> None:
    """Refuse what is not plain JSON, or not of a modest size, also where parts occur repeatedly.

    The losses and scores of a run may be no numbers: `finite` is False for them.

    Raises:
        DataError: As said.
    """
    cost = 0
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        cost += 1 + (len(item) if isinstance(item, str | dict | list | tuple) else 0)
        if cost > MAX_COST or depth > MAX_DEPTH:
            raise _unusable(name, key, "a few values, nested a few levels", "more")
        if isinstance(item, dict):
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
            if not all(isinstance(word, str) for word in item):
                raise _unusable(name, key, "names as keys", "others")
        elif isinstance(item, list | tuple):
            waiting += [(part, depth + 1) for part in item]
        else:
            plain = _is_plain(item) or (not finite and isinstance(item, float))
            _require(plain, name, key, "plain values", item)


def unusable_model(name: str, *, expected: str, found: str, remedy: str) -> DataError:
    """Return the error for a model that cannot be used."""
    return DataError.of(
        Problem(
            case="model",
            kind="unusable-model",
            file=name,
            expected=expected,
            found=found,
            remedy=remedy,
        )
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) <= MAX_INTEGER)


def _judge_weights(weights: Any, name: str, max_bytes: int) -> None:
    """Refuse all but ordinary tensors on the CPU that take no more memory than the file has."""
    what = "tensors by their names"
    _require(isinstance(weights, dict), name, "weights", what, weights)
    for key, tensor in weights.items():
        _require(isinstance(key, str) and key.isprintable(), name, "weights", what, key)
        _require(_is_ordinary(tensor), name, "weights", f"an ordinary tensor as {key}", tensor)
    # A tensor can claim any size, by strides of 0 for example.
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    fits = num_bytes <= max_bytes
    _require(fits, name, "weights", f"at most the {max_bytes} bytes of the file", num_bytes)


def _is_ordinary(tensor: Any) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_complex())
        and not tensor.is_neg()
    )


def _judge_header(header: dict[str, Any], name: str) -> None:
    """Refuse a header that no data list has."""
    findings = Findings(Path(name), case="model")
    found = read_header(header, default_name="", findings=findings)
    findings.raise_if_any()
    expected = {
        "name": found.name,
        "modality": list(found.modalities),
        "labels": found.labels,
        "regions": {region: list(names) for region, names in found.regions.items()},
    }
    # In this order: it numbers the channels and the classes.
    same = repr([header.get(key) for key in HEADER_KEYS]) == repr(list(expected.values()))
    _require(same, name, "header", "the header of a data list as checkpoints hold it", header)


def _judge_network(network: dict[str, Any], header: Mapping[str, Any], name: str) -> None:
    # Text first: whatever else a file holds there may not be a key at all.
    known = isinstance(network.get("name"), str) and network["name"] in NETWORKS
    expected = f"one of {', '.join(NETWORKS)}"
    _require(known, name, "network.name", expected, network.get("name"))
    for key, section in (("in_channels", "modality"), ("out_channels", "labels")):
        count = len(header[section])
        _require(network.get(key) == count, name, f"network.{key}", str(count), network.get(key))
    for key, value in network.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            small = not isinstance(number, int) or abs(number) <= MAX_NETWORK_NUMBER
            limit = f"numbers up to {MAX_NETWORK_NUMBER}"
            _require(small, name, f"network.{key}", limit, number)


def _judge_preprocessing(preprocessing: Mapping[str, Any], name: str) -> None:
    settings = dict(preprocessing)
    divisor = settings.pop("divisor", None)
    is_count = isinstance(divisor, int) and 1 <= divisor <= MAX_NETWORK_NUMBER
    _require(is_count, name, "preprocessing.divisor", "a count of voxels", divisor)
    _settings({"preprocessing": settings}, name)


def _settings(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of a run with all defaults, as plain values."""
    try:
        return build_settings(settings).model_dump(mode="json")
    except SettingsError as error:
        raise unusable_model(
            name, expected="the settings of a run", found=str(error), remedy=REMEDY
        ) from error


def _judge_provenance(values: Mapping[str, Any], name: str) -> None:
    """Judge what only people read: versions, scores, and whom the model was trained on."""
    texts = all(isinstance(text, str) for text in values["versions"].values())
    _require(texts, name, "versions", "texts", values["versions"])
    numbers = all(isinstance(score, float) for score in values["scores"].values())
    _require(numbers, name, "scores", "numbers", values["scores"])
    trained_on = values["trained_on"]
    are_digests = isinstance(trained_on, list | tuple) and all(
        isinstance(digest, str) and SUBJECT_DIGEST.fullmatch(digest) for digest in trained_on
    )
    _require(trained_on is None or are_digests, name, "trained_on", "digests", trained_on)


def _require(is_right: bool, name: str, key: str, expected: str, found: Any) -> None:
    if not is_right:
        raise _unusable(name, key, expected, _shown(found))


def _unusable(name: str, key: str, expected: str, found: str) -> DataError:
    return unusable_model(name, expected=f"{expected} ({key})", found=found, remedy=REMEDY)


def _shown(value: Any) -> str:
    """Return a short picture; of anything large or foreign only its type."""
    if value is None or isinstance(value, bool | float) or _is_plain(value):
        return f"{value!r:.60}"
    return f"a value of the type {type(value).__name__}"
