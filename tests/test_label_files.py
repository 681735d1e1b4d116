"""Label descriptions: what ITK-SNAP and 3D Slicer read, with the colours of our pictures."""

from __future__ import annotations

from pathlib import Path

from conftest import LABELS

from pipeline.inference.label_files import itk_snap_text, slicer_text, write_label_files


def test_itk_snap_has_a_line_for_each_label() -> None:
    """Index, red, green, blue, opacity, visible, mesh, name; the background is not shown."""
    assert itk_snap_text(LABELS).splitlines()[2:] == [
        '0 0 0 0 0 0 0 "background"',
        '1 0 114 178 1 1 1 "necrotic_core"',
        '2 0 158 115 1 1 1 "oedema"',
        '4 230 159 0 1 1 1 "enhancing_tumour"',
    ]


def test_slicer_has_a_line_for_each_label() -> None:
    assert slicer_text(LABELS).splitlines()[1:] == [
        "0 background 0 0 0 0",
        "1 necrotic_core 0 114 178 255",
        "2 oedema 0 158 115 255",
        "4 enhancing_tumour 230 159 0 255",
    ]


def test_names_cannot_break_the_lines_apart(tmp_path: Path) -> None:
    """Spaces end a name in Slicer's table, quotation marks in ITK-SNAP's."""
    labels = {"background": 0, 'non "enhancing" core': 1}
    assert itk_snap_text(labels).splitlines()[-1].endswith("\"non 'enhancing' core\"")
    assert slicer_text(labels).splitlines()[-1] == "1 non_'enhancing'_core 0 114 178 255"
    write_label_files(tmp_path, labels)
    assert (tmp_path / "labels_itksnap.txt").read_text() == itk_snap_text(labels)
    assert (tmp_path / "labels_slicer.ctbl").read_text() == slicer_text(labels)
