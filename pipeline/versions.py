"""Which versions results depend on, as they are stored beside every result."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

PROJECT = "brain-tumour-segmentation"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of this project and of each package."""
    return {PROJECT: _own_version(), **{name: version(name) for name in packages}}


def _own_version() -> str:
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return "a checkout that is not installed"
