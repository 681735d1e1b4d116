"""Damaged and hostile files for the fuzz tests: mutators of bytes, NIfTI headers and JSON values.

Every mutator takes a `random.Random`, so that a mutant can be made again from its number.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import struct
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

import nibabel as nib
import numpy as np

from pipeline.errors import PipelineError

T = TypeVar("T")
EDGES = (0, 1, -1, 2, 127, 128, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**63 - 1)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-20, 1e20, 3e38, math.nan, math.inf, -math.inf, 352.5)
TEXTS = (
    *("", " ", "..", "../../etc/passwd", "/etc/passwd", "C:\\Windows", "//host/share", "a/../../b"),
    *("link/secret", "a\\b", "a\0b", "\ud800", "\x1b[2J", "\u202egnp", "e\u0301", "\uff0e\uff0e/x"),
    *("background", "t1gd", "NaN", "$import os", "9" * 60, "x" * 5000, "case\n000", "~/x", "CON"),
)
NUMBERS = (0, 1, -1, 3, 4, 32768, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.inf, math.nan)


def ours(read: Callable[[], T]) -> T | None:
    """Return what `read` gives, or None where it raises our error; any other exception passes.

    Our errors are shown on consoles and written to reports: they can be encoded, and no character
    of them steers a terminal.
    """
    try:
        return read()
    except PipelineError as error:
        text = str(error)
        text.encode()
        strange = {letter for letter in text if not letter.isprintable()} - {"\n"}
        assert not strange, f"unprintable characters {strange!r} in {text[:300]!r}"
        assert text.strip(), "an empty message"
        return None


# ---- Bytes --------------------------------------------------------------------------------------


def _flip(random: Random, data: bytearray) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _number(random: Random, data: bytearray) -> None:
    code = random.choice("bhiqfd")
    value = random.choice(REALS) if code in "fd" else random.choice(EDGES)
    size = struct.calcsize(code)
    if code not in "fd":
        value = (int(value) + 2 ** (8 * size - 1)) % 2 ** (8 * size) - 2 ** (8 * size - 1)
    at = random.randrange(max(1, len(data) - size))
    data[at : at + size] = struct.pack(random.choice("<>") + code, value)


def _chunk(random: Random, data: bytearray) -> slice:
    start = random.randrange(len(data))
    return slice(start, start + random.choice((1, 2, 4, 16, 64, 512)))


def _delete(random: Random, data: bytearray) -> None:
    del data[_chunk(random, data)]


def _repeat(random: Random, data: bytearray) -> None:
    chunk = _chunk(random, data)
    data[chunk.start : chunk.start] = data[chunk] * random.choice((1, 2, 50))


def _zero(random: Random, data: bytearray) -> None:
    chunk = _chunk(random, data)
    data[chunk] = random.choice((b"\0", b"\xff")) * len(data[chunk])


def _insert(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.randbytes(random.choice((1, 3, 8, 100)))


def _move(random: Random, data: bytearray) -> None:
    chunk, at = _chunk(random, data), random.randrange(len(data))
    data[at : at + len(data[chunk])] = data[chunk]


def _truncate(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data) + 1) :]


BYTE_EDITS = (_flip, _flip, _flip, _number, _number, _delete, _repeat, _zero, _insert, _move)


def mutated_bytes(random: Random, data: bytes) -> bytes:
    """Return `data` with one to six edits, seldom also cut off."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        if changed:
            random.choice(BYTE_EDITS)(random, changed)
    if changed and random.random() < 0.15:
        _truncate(random, changed)
    return bytes(changed)


def flipped_bit(random: Random, data: bytes) -> bytes:
    """Return `data` with exactly one bit the other way round."""
    changed = bytearray(data)
    _flip(random, changed)
    return bytes(changed)


# ---- NIfTI --------------------------------------------------------------------------------------


def nifti_bytes(shape: tuple[int, ...] = (5, 4, 3), *, second: bool = False) -> bytes:
    """Return a sound int16 image, in NIfTI-1 or NIfTI-2, not compressed."""
    volume = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    affine = np.array([[-1.2, 0, 0, 31], [0, -0.9, 0, -17], [0, 0, 2.5, 8], [0, 0, 0, 1.0]])
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    return bytes(kind(volume, affine, dtype=np.int16).to_bytes())


def with_strange_fields(random: Random, data: bytes) -> bytes:
    """Return NIfTI bytes with one to four header fields set to values at the edges of their type.

    `data` is what `nifti_bytes` returns; half of the mutants keep a length that fits.
    """
    kind = nib.Nifti2Header if data[4:8] == b"n+2\0" else nib.Nifti1Header
    layout = kind.template_dtype
    header = np.frombuffer(data[: layout.itemsize], dtype=layout).copy()
    for _ in range(random.choice((1, 1, 2, 4))):
        name = random.choice([*layout.names, "dim", "dim", "pixdim", "srow_x", "vox_offset"])
        field = header[name].reshape(-1)
        if field.dtype.kind == "S":
            header[name] = random.randbytes(random.randrange(1, 9))
            continue
        at = random.randrange(field.size)
        if field.dtype.kind == "f":
            field[at] = np.clip(random.choice(REALS), -3e38, 3e38, dtype=np.float64)
            if random.random() < 0.3:
                field[at] = random.choice((math.nan, math.inf))
        else:
            limits = np.iinfo(field.dtype)
            field[at] = min(max(random.choice(EDGES), limits.min), limits.max)
        header[name] = field.reshape(header[name].shape)
    swapped = header.byteswap() if random.random() < 0.1 else header
    return swapped.tobytes() + data[layout.itemsize :]


def gzip_variant(random: Random, data: bytes) -> bytes:
    """Return `data` as gzip: whole, in two members, with a wrong trailer or with things behind."""
    at = random.randrange(len(data) + 1)
    whole = gzip.compress(data, compresslevel=random.choice((0, 1, 9)), mtime=0)
    halves = gzip.compress(data[:at], mtime=0), gzip.compress(data[at:], mtime=0)
    return random.choice(
        (
            whole,
            b"".join(halves),
            halves[0] + random.randbytes(3) + halves[1],
            halves[0] + gzip.compress(b"", mtime=0) * random.choice((1, 40)) + halves[1],
            whole[:-8] + random.randbytes(8),
            whole[:-4] + struct.pack("<I", random.choice((0, 1, 2**31, 2**32 - 1))),
            whole + random.choice((b"\0", b"\0" * 512, whole, b"\x1f\x8b", random.randbytes(20))),
            whole[: random.randrange(len(whole))],
            gzip.compress(data + bytes(random.choice((1, 2**20, 2**24))), mtime=0),  # a small bomb
        )
    )


# ---- JSON ---------------------------------------------------------------------------------------


def strange_value(random: Random, depth: int = 0) -> Any:
    """Return a JSON value of any type, nested at most four deep."""
    kind = random.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return random.choice((None, True, False))
    if kind < 3:
        return random.choice(NUMBERS)
    if kind < 6:
        return random.choice(TEXTS)
    if kind == 6:
        return {random.choice(TEXTS): strange_value(random, depth + 1) for _ in range(2)}
    return [strange_value(random, depth + 1) for _ in range(random.choice((0, 1, 2, 5)))]


def with_strange_values(random: Random, document: Any, *, num: int | None = None) -> Any:
    """Return a copy of a JSON value in which some values were replaced, renamed, removed, added."""
    changed = [copy.deepcopy(document)]
    for _ in range(num or random.choice((1, 1, 2, 4))):
        parent, key = random.choice(_places(changed))
        edit = random.randrange(7)
        if isinstance(parent, dict) and edit == 0:
            parent[random.choice(TEXTS)] = parent.pop(key)
        elif edit == 1 and parent is not changed:
            del parent[key]
        elif isinstance(parent, list) and edit == 2 and parent is not changed:
            parent.append(copy.deepcopy(parent[key]))
        elif edit == 3:
            parent[key] = copy.deepcopy(random.choice([p[k] for p, k in _places(changed)]))
        else:
            parent[key] = strange_value(random)
    return changed[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a JSON value, the outermost first."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        found += [(container, key) for key in keys]
        waiting += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return found


def json_text(random: Random, value: Any) -> bytes:
    """Return `value` as JSON text as a stranger might write it: another encoding, keys twice."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.1:
        text = text.replace('"case"', '"case": "twice", "case"', 1)
    if random.random() < 0.1:
        depth = random.choice((50, 5000, 200_000))
        opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
        text = text[:-1] + ', "deep": ' + opening * depth + "1" + closing * depth + "}"
    if random.random() < 0.1:
        text = text.replace("1", random.choice(("1e999", "-Infinity", "9" * 5000, "01", "1.")), 1)
    encoding = random.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    content = text.encode(encoding, errors="backslashreplace")
    return mutated_bytes(random, content) if random.random() < 0.3 else content
