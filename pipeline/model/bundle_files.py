"""What an exported bundle holds that inference needs, read as data: nothing in it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

METADATA = Path("configs", "metadata.json")


def is_bundle(folder: Path) -> bool:
    """Whether `folder` is laid out as a MONAI bundle."""
    return (folder / METADATA).is_file()


def read_bundle(folder: Path) -> dict[str, Any]:
    """Return what `TrainedModel` holds, except its name."""
    raise NotImplementedError
