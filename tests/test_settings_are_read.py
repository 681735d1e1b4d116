"""Every setting is read somewhere: one that nobody reads is a promise that nobody keeps."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

import pipeline
from pipeline import config
from pipeline.config import InferenceSettings, Settings
from pipeline.training.data import prepare_data
from transforms import (
    RandAppearanced,
    RandDeformedd,
    build_augmentation,
    build_preprocessing,
)

# Stages that are passed on whole, and the parameters of the receiver that do not come from them.
RECEIVERS: dict[str, tuple[Callable[..., object], set[str]]] = {
    "preprocessing": (build_preprocessing, {"keys", "divisor"}),
    "augmentation": (build_augmentation, {"keys"}),
    "loading": (
        prepare_data,
        {
            "training_cases",
            "validation_cases",
            "preprocessing",
            "augmentation",
            "seed",
            "batch_size",
            "foresight",
            "cache_dir",
        },
    ),
}
# The stages within the stage "augmentation", and the transforms that they are passed on to.
PARTS: dict[str, Callable[..., object]] = {
    "deformation": RandDeformedd,
    "appearance": RandAppearanced,
}
SOURCES = [Path(pipeline.__file__).with_name("train.py")]
SOURCES += sorted(Path(pipeline.__file__).with_name("training").glob("*.py"))
SOURCES += [Path(pipeline.__file__).with_name("model") / "trained.py"]


def stages(model: type[BaseModel] = Settings) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def read_keys(source: str) -> set[tuple[str, str]]:
    """Return the (stage, name) pairs that Python `source` reads.

    A pair is read by `settings["stage"]["name"]`, or by `stage["name"]` where a variable has the
    stage's name, or by a function that takes `**stage` and has a parameter `name` that it uses; a
    top-level setting counts as ("", name).
    """
    tree = ast.parse(source)
    pairs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            pairs |= _subscript_pair(node)
    for stage, function in _calls_with_a_whole_stage(tree):
        pairs |= {(stage, name) for name in _used_parameters(tree, function)}
    return pairs


def _key_of(node: ast.expr) -> str | None:
    """Return "name" of `...["name"]`."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return None


def _subscript_pair(node: ast.Subscript) -> set[tuple[str, str]]:
    name, below = _key_of(node), node.value
    if name is None:
        return set()
    if isinstance(below, ast.Name):
        return {("" if below.id == "settings" else below.id, name)}
    if isinstance(below, ast.Attribute):
        return {("" if below.attr == "settings" else below.attr, name)}
    stage = _key_of(below)
    return set() if stage is None else {(stage, name)}


def _calls_with_a_whole_stage(tree: ast.AST) -> list[tuple[str, str]]:
    """Return (stage, function) of calls like `function(..., **stage)`."""
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            function = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            for keyword in node.keywords:
                if keyword.arg is None:
                    value = keyword.value
                    stage = value.id if isinstance(value, ast.Name) else _key_of(value)
                    calls.append((stage or "", function))
    return calls


def _used_parameters(tree: ast.AST, function: str) -> set[str]:
    """Return the parameters of `function` that its body mentions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            names = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
            inner = [inside for part in node.body for inside in ast.walk(part)]
            used = {inside.id for inside in inner if isinstance(inside, ast.Name)}
            return names & used - {"self"}
    return set()


@pytest.fixture(scope="module")
def pairs() -> set[tuple[str, str]]:
    # Together, since the function that takes a stage may live in another file than its call.
    return read_keys("\n".join(path.read_text(encoding="utf-8") for path in SOURCES))


@pytest.mark.parametrize("stage", RECEIVERS)
def test_a_stage_passed_on_whole_has_just_the_parameters_of_its_receiver(stage: str) -> None:
    receiver, others = RECEIVERS[stage]
    parameters = set(inspect.signature(receiver).parameters)
    assert others <= parameters
    assert set(stages()[stage].model_fields) == parameters - others


@pytest.mark.parametrize("stage", RECEIVERS)
def test_a_receiver_uses_every_parameter(stage: str) -> None:
    receiver, _ = RECEIVERS[stage]
    tree = ast.parse(inspect.getsource(receiver))
    assert _used_parameters(tree, receiver.__name__) == set(inspect.signature(receiver).parameters)


@pytest.mark.parametrize("stage", sorted(stages().keys() - RECEIVERS.keys() - {"inference"}))
def test_every_setting_of_a_stage_is_read(stage: str, pairs: set[tuple[str, str]]) -> None:
    dead = [name for name in stages()[stage].model_fields if (stage, name) not in pairs]
    assert dead == []


def test_every_setting_without_a_stage_is_read(pairs: set[tuple[str, str]]) -> None:
    names = Settings.model_fields.keys() - stages().keys()
    assert {name for name in names if ("", name) not in pairs} == set()


def test_every_stage_is_read(pairs: set[tuple[str, str]]) -> None:
    assert {stage for stage in stages() if ("", stage) not in pairs} == set()


def test_every_model_of_the_settings_is_one_of_their_stages() -> None:
    models = {model for model in vars(config).values() if inspect.isclass(model)}
    models = {model for model in models if issubclass(model, config.Stage)}
    known = {*stages().values(), *stages(config.AugmentationSettings).values()}
    assert models - {config.Stage, Settings, InferenceSettings} == known


def test_every_setting_of_inference_is_read() -> None:
    folder = Path(pipeline.__file__).with_name("inference")
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    read = {name for stage, name in read_keys(source) if stage == ""}
    assert InferenceSettings.model_fields.keys() - read == set()


def test_a_dead_setting_would_be_found() -> None:
    source = """
def build(self, *, used, dead, **_):
    return used + self.settings["seed"] + settings["checkpoint"]["every"] + training["rate"]

build(**training)
"""
    assert read_keys(source) == {
        ("", "seed"),
        ("checkpoint", "every"),
        ("", "checkpoint"),
        ("training", "rate"),
        ("training", "used"),
    }
