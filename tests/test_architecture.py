"""The import table of the house: a module imports from lower rows or its own folder only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. A module belongs to the row with the longest matching name; modules of one row do
# not import each other unless they share the entry.
ROWS: list[list[str]] = [
    ["transforms"],
    ["networks"],
    ["pipeline.errors", "pipeline.presets", "pipeline.signals"],
    ["pipeline.config", "pipeline.cli", "pipeline.versions"],
    ["pipeline.data"],
    ["pipeline.model"],
    ["pipeline.inference", "pipeline.evaluation"],
    ["pipeline.training"],
    ["pipeline.bundle", "pipeline.reporting"],
    ["pipeline.crossvalidation"],
    [
        "pipeline.phantom",
        "pipeline.make_datalist",
        "pipeline.check",
        "pipeline.train",
        "pipeline.crossval",
        "pipeline.infer",
        "pipeline.evaluate",
        "pipeline.export",
        "pipeline.report",
    ],
    ["pipeline.__main__"],
]
# The two leaf packages: what else they may import.
LEAVES = {
    "transforms": {"transforms", "numpy", "torch", "monai"},
    "networks": {"networks", "torch", "monai"},
}
VERBS = (
    "phantom",
    "make_datalist",
    "check",
    "train",
    "crossval",
    "infer",
    "evaluate",
    "export",
    "report",
)


def modules() -> list[str]:
    files = [
        file
        for package in ("pipeline", "transforms", "networks")
        for file in sorted((ROOT / package).rglob("*.py"))
    ]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def imports_of(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            found.add(node.module or "")
    return found


def entry_of(module: str) -> tuple[int, str] | None:
    matches = [
        (row, entry)
        for row, entries in enumerate(ROWS)
        for entry in entries
        if module == entry or module.startswith(entry + ".")
    ]
    return max(matches, key=lambda match: len(match[1]), default=None)


@pytest.mark.parametrize("module", [name for name in modules() if name != "pipeline"])
def test_imports_point_down(module: str) -> None:
    place = entry_of(module)
    assert place is not None, f"{module} is missing from the table"
    row, entry = place
    for imported in imports_of(module):
        target = entry_of(imported)
        if target is None or target[1] == entry:
            continue
        assert target[0] < row, f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("module", [name for name in modules() if name.split(".")[0] in LEAVES])
def test_leaf_packages_import_no_application(module: str) -> None:
    package = module.split(".")[0]
    foreign = {
        name.split(".")[0]
        for name in imports_of(module)
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    assert foreign <= LEAVES[package]


@pytest.mark.parametrize("verb", VERBS)
def test_help_does_not_import_torch(verb: str) -> None:
    # A line for each import; --help must come at once, and torch alone takes over a second.
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"pipeline.{verb}", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "usage: python -m pipeline" in done.stdout
    assert not imported & {"torch", "monai", "numpy", "nibabel", "pydantic", "rich"}
