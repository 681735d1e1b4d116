"""What `<case>.json` says of a prediction's origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS
from prediction_files import write_record

from pipeline.errors import DataError
from pipeline.evaluation.provenance import ModelOrigin, Provenance, read_provenance


def read(path: Path) -> Provenance:
    return read_provenance(path, case="case_000", labels=LABELS)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ((True,), True),
        ((False,), False),
        ((None,), None),
        ((False, True, None), True),  # one model of an ensemble is enough
        ((False, None), None),
        ((False, False), False),
        ((), None),
    ],
)
def test_seen_in_training(
    tmp_path: Path, seen: tuple[bool | None, ...], expected: bool | None
) -> None:
    assert read(write_record(tmp_path, "case_000", *seen)).seen_in_training is expected


def test_models(tmp_path: Path) -> None:
    path = write_record(tmp_path, "case_000", False, None)
    assert read(path).models == (
        ModelOrigin("model 0", "0" * 64),
        ModelOrigin("model 1", "0" * 63 + "1"),
    )


def test_other_software_leaves_no_record(tmp_path: Path) -> None:
    assert read(tmp_path / "case_000.json") == Provenance(models=(), seen_in_training=None)


def test_a_record_needs_nothing_but_to_be_an_object(tmp_path: Path) -> None:
    path = tmp_path / "case_000.json"
    path.write_text('{"models": [{"name": "n"}]}')
    assert read(path) == Provenance((ModelOrigin("n", ""),), None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"case": "case_001"}, "prediction-case: expected case case_000; found case_001"),
        (
            {"labels": {**LABELS, "enhancing_tumour": 3}},
            r"prediction-labels: expected labels .*'enhancing_tumour': 4\}; found .*: 3\}",
        ),
        ({"models": {}}, r"prediction-json: expected 'models' as a list .*; found \{\}"),
        ({"models": ["quick"]}, "list of objects with a text 'name'"),
        ({"models": [{"name": 1}]}, "list of objects with a text 'name'"),
        ({"models": [{"name": "n", "digest": 1}]}, "list of objects"),
        ({"models": [{"name": "n", "seen_in_training": "no"}]}, "true, false or null"),
    ],
)
def test_a_record_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write_record(tmp_path, "case_000", **changes)
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert caught.value.problems[0].file == f"{tmp_path.name}/case_000.json"


def test_a_record_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "case_000.json"
    path.write_text("[]")
    with pytest.raises(DataError, match="an object with a key 'models'; found a JSON list"):
        read(path)


def test_a_record_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "case_000.json"
    path.write_text("{")
    with pytest.raises(DataError, match="json-syntax"):
        read(path)
