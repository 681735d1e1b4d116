"""Label descriptions for ITK-SNAP and 3D Slicer, so that masks open with names and colours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.data.colours import colours_of
from pipeline.data.files import replace_file

ITK_SNAP = "labels_itksnap.txt"
SLICER = "labels_slicer.ctbl"


def write_label_files(folder: Path, labels: Mapping[str, int]) -> None:
    """Write both files into `folder`.

    Args:
        folder: Where the masks are.
        labels: The voxel value of each label, background first.

    Raises:
        ResourceError: A file cannot be written.
    """
    replace_file(folder / ITK_SNAP, itk_snap_text(labels).encode())
    replace_file(folder / SLICER, slicer_text(labels).encode())


def itk_snap_text(labels: Mapping[str, int]) -> str:
    """Return what ITK-SNAP imports: index, red, green, blue, opacity, visible, mesh, name."""
    lines = ["# ITK-SnAP Label Description File", "# IDX R G B A VIS MSH LABEL"]
    for index, (name, value) in enumerate(labels.items()):
        red, green, blue = colours_of(index)
        shown = int(index > 0)
        lines.append(f'{value} {red} {green} {blue} {shown} {shown} {shown} "{_quotable(name)}"')
    return "\n".join(lines) + "\n"


def slicer_text(labels: Mapping[str, int]) -> str:
    """Return 3D Slicer's colour table: value, name, red, green, blue, opacity."""
    lines = ["# Color table: value name R G B A"]
    for index, (name, value) in enumerate(labels.items()):
        red, green, blue = colours_of(index)
        opacity = 255 if index else 0
        lines.append(f"{value} {_quotable(name).replace(' ', '_')} {red} {green} {blue} {opacity}")
    return "\n".join(lines) + "\n"


def _quotable(name: str) -> str:
    return name.replace('"', "'")
