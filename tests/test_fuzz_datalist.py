"""Data lists from strangers: our error or a list all of whose files lie inside its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import LABELS, MODALITIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import json_text, mutated_bytes, ours, with_strange_values

from pipeline.data import json_files
from pipeline.data.datalist import DataList, read_datalist
from pipeline.data.json_files import read_json
from pipeline.errors import DataError

FEW = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RANDOMS = st.integers(0, 2**32).map(Random)
CASES = [
    {
        "case": f"case_{index}",
        "fold": index % 2,
        "seg": f"{index}/seg.nii.gz",
        **{name: f"{index}/{name}.nii.gz" for name in MODALITIES},
    }
    for index in range(3)
]
OURS = {
    "name": "tests",
    "modality": list(MODALITIES),
    "labels": LABELS,
    "regions": {"WT": ["oedema"]},
    "training": [CASES[0], {**CASES[1], "labels": {"enhancing_tumour": 3}}],
    "testing": [CASES[2]],
}
DECATHLON = {
    "modality": {"0": "FLAIR", "1": "T1w"},
    "labels": {"0": "background", "1": "edema", "2": "enhancing tumour"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": ["./imagesTs/b.nii.gz"],
}
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def read(folder: Path, content: bytes) -> DataList | None:
    """Return the list with this text, None where it is refused; its paths stay in `folder`."""
    root = folder / "root"
    if not root.exists():
        root.mkdir()
        (root / "link").symlink_to(folder)
    path = root / "list.json"
    path.write_bytes(content)
    found = ours(lambda: read_datalist(path))
    ours(lambda: read_datalist(path, allow_outside_root=True))
    if found is not None:
        cases = (*found.training, *found.validation, *found.testing)
        files = [file for case in cases for file in (*case.images, case.label) if file]
        assert all(Path(os.path.realpath(file)).is_relative_to(root) for file in files)
        json.dumps(found.header(), allow_nan=False).encode()
        found.region_classes()
        for fold in (None, 0, 5):
            ours(lambda fold=fold: found.split(fold))  # type: ignore[misc]
    return found


@FEW
@given(random=RANDOMS, document=st.sampled_from([OURS, DECATHLON]))
def test_strange_values_anywhere(tmp_path: Path, random: Random, document: Any) -> None:
    strange = with_strange_values(random, document)
    read(tmp_path, json.dumps(strange).encode())


@FEW
@given(random=RANDOMS, document=st.sampled_from([OURS, DECATHLON]))
def test_strange_text(tmp_path: Path, random: Random, document: Any) -> None:
    content = json_text(random, document)
    read(tmp_path, content)
    read(tmp_path, mutated_bytes(random, content))


@FEW
@given(key=st.sampled_from([*OURS, "training"]), value=VALUES)
def test_any_value_in_any_section(tmp_path: Path, key: str, value: Any) -> None:
    read(tmp_path, json.dumps({**OURS, key: value}).encode())


@FEW
@given(key=st.sampled_from(sorted({*CASES[0], "image", "subject"})), value=VALUES)
def test_any_value_in_a_case(tmp_path: Path, key: str, value: Any) -> None:
    read(tmp_path, json.dumps({**OURS, "training": [{**CASES[0], key: value}]}).encode())


@FEW
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_text(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) is None


# ---- What the campaign found --------------------------------------------------------------------


@pytest.mark.parametrize("key", ["\x1b[2J", "\ud800", "\u202egnp", "a\0b", "x" * 1001])
def test_a_key_that_could_steer_a_terminal_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({key: 1}))
    with pytest.raises(DataError, match=r"the key '.*', which is too long or cannot be printed"):
        read_json(path)


def test_more_values_than_a_list_can_need(tmp_path: Path) -> None:
    """Each of them would become a fault of about a kilobyte."""
    path = tmp_path / "list.json"
    path.write_text(json.dumps([1] * (json_files.MAX_VALUES + 1)))
    assert len(read_json(path)) == json_files.MAX_VALUES + 1
    path.write_text(json.dumps([1] * (json_files.MAX_VALUES + 2)))
    with pytest.raises(DataError, match="file-too-large: expected at most 300000 values; found mo"):
        read_json(path)
