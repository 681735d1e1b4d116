"""A compact case as bytes: what is kept where memory is short, and in files. No code is loaded.

The bytes are a SHA-256 of the rest, the length of a JSON header, the header, and the compressed
voxels in its order. Each byte of a voxel goes to a plane of its own before it is compressed: the
high bytes of neighbours hardly differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import deflate
import numpy as np
import torch
from monai.data import MetaTensor

from pipeline.data.compact import CompactTensor

FORMAT = "brain-tumour-segmentation: compact case, 1"
DIGEST_BYTES = hashlib.sha256().digest_size
LENGTH_BYTES = 8
LEVEL = 1  # of deflate: the higher ones save 5 % and take three times as long
# What JSON has no word for: written as {kind: content}, which no other dictionary may look like.
TUPLE, ARRAY, TENSOR = "(tuple)", "(array)", "(tensor)"


def pack_case(case: Mapping[str, Any], *, name: str = "") -> bytes:
    """Return a compact case (`compact_case`) as bytes.

    Args:
        case: Texts, numbers and CompactTensors.
        name: What `unpack_case` will be asked for, such as a digest of what the case depends on.

    Raises:
        TypeError: A value is of no type that can be written.
    """
    entries: dict[str, Any] = {}
    pieces: list[bytes] = []
    for key, value in case.items():
        if isinstance(value, CompactTensor):
            packed = _packed_planes(value.values)
            entries[key] = {**_described(value), "pieces": [len(piece) for piece in packed]}
            pieces += packed
        else:
            entries[key] = {"value": _to_json(value)}
    header = json.dumps({"format": FORMAT, "name": name, "entries": entries}).encode()
    content = b"".join([len(header).to_bytes(LENGTH_BYTES, "big"), header, *pieces])
    return hashlib.sha256(content).digest() + content


def unpack_case(packed: bytes, *, name: str | None = None) -> dict[str, Any]:
    """Return the compact case that `pack_case` was given.

    Args:
        packed: What it returned.
        name: What it was called then; None where that does not matter.

    Raises:
        ValueError: These are not, or no longer, the bytes of a case with this name.
    """
    view = memoryview(packed)
    if hashlib.sha256(view[DIGEST_BYTES:]).digest() != view[:DIGEST_BYTES]:
        raise ValueError("the content does not have the SHA-256 that it states")
    end = DIGEST_BYTES + LENGTH_BYTES
    begin = end + int.from_bytes(view[DIGEST_BYTES:end], "big")
    header = json.loads(bytes(view[end:begin]))
    if header["format"] != FORMAT or name not in (None, header["name"]):
        raise ValueError("it is of another format, or of another case")
    case: dict[str, Any] = {}
    for key, entry in header["entries"].items():
        if "value" in entry:
            case[key] = _from_json(entry["value"])
            continue
        lengths = entry["pieces"]
        pieces = []
        for length in lengths:
            pieces.append(view[begin : begin + length])
            begin += length
        case[key] = _unpacked(entry, pieces)
    return case


def _described(volume: CompactTensor) -> dict[str, Any]:
    trace = volume.trace
    return {
        "dtype": volume.values.numpy().dtype.str,
        "box": list(volume.values.shape),
        "start": list(volume.start),
        "shape": list(volume.shape),
        "divisor": volume.divisor,
        "meta": None if trace is None else _to_json(trace.meta),
        "operations": None if trace is None else _to_json(trace.applied_operations),
    }


def _unpacked(entry: Mapping[str, Any], pieces: list[memoryview]) -> CompactTensor:
    trace = None
    if entry["meta"] is not None:
        trace = MetaTensor(
            torch.empty(0),
            meta=_from_json(entry["meta"]),
            applied_operations=_from_json(entry["operations"]),
        )
    return CompactTensor(
        values=_unpacked_planes(pieces, shape=entry["box"], dtype=np.dtype(entry["dtype"])),
        start=tuple(entry["start"]),
        shape=tuple(entry["shape"]),
        divisor=entry["divisor"],
        trace=trace,
    )


def _packed_planes(values: torch.Tensor) -> list[bytes]:
    """Return the first, second, ... bytes of all voxels, channel by channel, each compressed."""
    pieces = []
    for channel in values.numpy():
        planes = channel.reshape(-1).view(np.uint8).reshape(-1, channel.itemsize)
        # Piece by piece, because libdeflate holds Python's lock: other threads want it as well.
        pieces += [bytes(deflate.deflate_compress(plane.tobytes(), LEVEL)) for plane in planes.T]
    return pieces


def _unpacked_planes(
    pieces: list[memoryview], *, shape: list[int], dtype: np.dtype[Any]
) -> torch.Tensor:
    values = np.empty(shape, dtype=dtype)
    num_voxels = int(np.prod(shape[1:]))
    unread = iter(pieces)
    for channel in values:
        planes = channel.reshape(-1).view(np.uint8).reshape(-1, dtype.itemsize)
        for plane in planes.T:
            plane[:] = np.frombuffer(deflate.deflate_decompress(next(unread), num_voxels), np.uint8)
    return torch.from_numpy(values)


def _to_json(value: Any) -> Any:
    """Return `value`, as metadata and traces hold it, in JSON's types."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):  # also MONAI's enumerations, which equal their texts
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"expected texts as keys; found {list(value)[:3]}")
        return {str(key): _to_json(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_to_json(below) for below in value]
    if isinstance(value, tuple):
        return {TUPLE: [_to_json(below) for below in value]}
    if isinstance(value, torch.Tensor):
        return {TENSOR: _to_json(value.numpy())}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {ARRAY: [value.dtype.str, list(value.shape), value.reshape(-1).tolist()]}
    raise TypeError(f"expected plain values, arrays and tensors; found {type(value).__name__}")


def _from_json(value: Any) -> Any:
    """Return what `_to_json` was given."""
    if isinstance(value, list):
        return [_from_json(below) for below in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        kind, content = next(iter(value.items()))
        if kind == TUPLE:
            return tuple(_from_json(below) for below in content)
        if kind == TENSOR:
            return torch.from_numpy(_from_json(content))
        if kind == ARRAY:
            dtype, shape, values = content
            return np.array(values, dtype=dtype).reshape(shape)
    return {key: _from_json(below) for key, below in value.items()}
