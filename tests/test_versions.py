"""Results say which versions made them, installed or not."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from pipeline import versions
from pipeline.versions import versions_of


def test_the_project_and_what_it_rests_on() -> None:
    assert versions_of(("numpy",)) == {
        "brain-tumour-segmentation": versions_of(())["brain-tumour-segmentation"],
        "numpy": version("numpy"),
    }


def test_a_checkout_without_metadata_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    assert versions_of(()) == {"brain-tumour-segmentation": "a checkout that is not installed"}
