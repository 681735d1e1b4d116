"""Which versions results depend on, as they are stored beside every result; also of the code."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = "brain-tumour-segmentation"
ROOT = Path(__file__).resolve().parents[1]


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of this project and of each package."""
    return {PROJECT: _own_version(), **{name: version(name) for name in packages}}


@functools.cache
def code_digest(patterns: tuple[str, ...], *, packages: tuple[str, ...]) -> str:
    """Return a SHA-256 of the versions of `packages`, and of the project's files by `patterns`.

    What one code has found or made, another one may not.
    """
    digest = hashlib.sha256(json.dumps(versions_of(packages)).encode())
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _own_version() -> str:
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return "a checkout that is not installed"
