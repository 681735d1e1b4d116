"""The names of `--methods`: presets of this project, variants of them, and the two peers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.accuracy_peers.nnunet import NAME as NNUNET
from benchmarks.accuracy_peers.segresnet import NAME as SEGRESNET
from benchmarks.accuracy_peers.task import LOGS, STAGES
from pipeline.config import Settings, build_settings, differences, parse_assignments, preset
from pipeline.errors import SettingsError
from pipeline.presets import PRESETS

PEERS = (NNUNET, SEGRESNET)
SCORES = "scores"
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# A comma ends an assignment only where another one begins: values in JSON have commas too.
BETWEEN_ASSIGNMENTS = re.compile(r",(?=[a-z_]+(?:\.[a-z_]+)*=)")


@dataclass(frozen=True)
class Method:
    """One row of the table; `preset` is None for a peer."""

    name: str
    preset: str | None = None
    assignments: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's."""
        return self.preset is not None

    @property
    def settings(self) -> Settings | None:
        """All its settings, but what the task says (grid and epochs); None for a peer."""
        if self.preset is None:
            return None
        return build_settings(preset(self.preset), parse_assignments(self.assignments))

    def trains_like(self, other: Method) -> bool:
        """Tell whether both train the same network, and differ at most in how it makes masks."""
        if self.settings is None or other.settings is None:
            return self.name == other.name
        changed = differences(self.settings, other.settings)
        return all(each.startswith("inference.") for each in changed)


def parse_methods(texts: Sequence[str]) -> tuple[Method, ...]:
    """Return the methods that `texts` name: PRESET, NAME=PRESET[:setting=value,...] or a peer.

    Raises:
        SettingsError: A name is twice there or no name of a folder, a preset or a setting does not
            exist, or none of the methods is ours.
    """
    methods = tuple(map(_parse_method, texts))
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(
                f"--methods: expected different names; found {name} twice. Name a variant: "
                f"{name}-2={name}:setting=value."
            )
    if not any(method.is_ours for method in methods):
        raise SettingsError(
            f"--methods: expected one of ours among them, to compare the others with; found "
            f"{', '.join(names)}. Add one of {', '.join(PRESETS)}."
        )
    return methods


def _parse_method(text: str) -> Method:
    if text in PEERS:
        return Method(text)
    name, equals, rest = text.partition("=")
    preset_name, _, assigned = (rest if equals else text).partition(":")
    if not FOLDER_NAME.fullmatch(name) or name in (*PEERS, STAGES, LOGS, SCORES):
        raise SettingsError(
            f"--methods {text}: expected a name of letters, digits, '_', '-' and '.', which is not "
            f"taken ({', '.join((*PEERS, STAGES, LOGS, SCORES))}); found {name!r}."
        )
    if preset_name not in PRESETS:
        raise SettingsError(
            f"--methods {text}: expected {', '.join(PEERS)}, a preset ({', '.join(PRESETS)}) or "
            f"NAME=PRESET:setting=value,...; found {preset_name!r}."
        )
    assignments = tuple(BETWEEN_ASSIGNMENTS.split(assigned)) if assigned else ()
    method = Method(name, preset_name, assignments)
    _ = method.settings  # raises
    return method
