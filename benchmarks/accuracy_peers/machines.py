"""On which machines, and with which versions, each method of a comparison ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.accuracy_peers.claims import NOTE
from benchmarks.accuracy_peers.task import Task
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json

CEILINGS = ("sgemm_gflops", "copy_gb_per_s")
# Two measurements of one machine differ by less; two machines of one name differed by a factor 2.
LARGEST_RATIO = 1.5

# As `describe_machine` tells it; None where it is not known.
Machine = Mapping[str, Any] | None


def note_machine(task: Task, name: str, machine: Machine) -> None:
    """Note that a method is begun, or goes on, on `machine`."""
    before = machines_of(task, name)
    path = task.stage_path(f"{name}/machines")
    replace_file(path, json_bytes(distinct([*before, machine])))


def machines_of(task: Task, name: str) -> list[Machine]:
    """Return the machines that a method ran on so far, in turn.

    What was done before machines were noted (in older folders) was done on None.
    """
    path = task.stage_path(f"{name}/machines")
    if path.exists():
        return list(read_json(path))
    is_begun = any(each.stem != NOTE for each in path.parent.glob("*.json"))
    return [None] if is_begun else []


def distinct(machines: Iterable[Machine]) -> list[Machine]:
    """Return each machine once, the first description of it."""
    found: list[Machine] = []
    for machine in machines:
        if not any(_is_same(machine, other) for other in found):
            found.append(machine)
    return found


def _is_same(one: Machine, other: Machine) -> bool:
    """Tell whether two descriptions are of one machine: the same words, and about as quick."""
    if one is None or other is None:
        return one is other
    words = [{key: each[key] for key in each if key not in CEILINGS} for each in (one, other)]
    return words[0] == words[1] and all(
        1 / LARGEST_RATIO < one[key] / other[key] < LARGEST_RATIO
        for key in CEILINGS
        if key in one and key in other
    )
