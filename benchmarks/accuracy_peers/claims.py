"""What the folder of a comparison was begun for: the task, and each method with its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy_peers.methods import Method
from benchmarks.accuracy_peers.task import STAGES, Task
from pipeline.config import Settings, build_settings, differences
from pipeline.data.json_files import read_json
from pipeline.errors import SettingsError

NOTE = "method"
REMEDY = "Choose another -o, or another name."


def claim(task: Task, methods: Sequence[Method]) -> None:
    """Note what the folder is for.

    Raises:
        SettingsError: It is for something else: another list, other minutes, a method of the same
            name with other settings (of another variant, or of a preset that was changed since).
    """
    _claim_task(task)
    for method in methods:
        _claim_method(task, method)


def claimed(task: Task) -> tuple[Method, ...]:
    """Return the methods that the folder was claimed for, in the order in which they were."""
    notes = []
    for path in (task.folder / STAGES).glob(f"*/{NOTE}.json"):
        note = read_json(path)
        # Older folders have no numbers there.
        order = (note.get("number", -1), path.stat().st_mtime_ns)
        notes.append((order, _noted_method(path.parent.name, note)))
    return tuple(method for _, method in sorted(notes, key=lambda each: each[0]))


def task_document(task: Task) -> dict[str, Any]:
    """Return what is the same for all methods, as plain JSON values."""
    return {
        "list": task.datalist.name,
        "list_sha256": hashlib.sha256(task.datalist.path.read_bytes()).hexdigest(),
        "num_cases": len(task.cases()),
        "folds": list(task.folds),
        "minutes": task.minutes,
        "spacing_mm": task.spacing_mm,
        "threads": task.threads,
        "device": task.device,
    }


def _claim_task(task: Task) -> None:
    document = task_document(task)
    stored = task.note("task", document)
    for key, value in document.items():
        if key in stored and stored[key] != value:
            raise SettingsError(
                f"{task.folder.name}, task: expected {key} {stored[key]}, as the folder was begun "
                f"with; found {value}. {REMEDY}"
            )


def _claim_method(task: Task, method: Method) -> None:
    settings = method.settings
    document = {
        "preset": method.preset,
        "assignments": list(method.assignments),
        "settings": settings and settings.model_dump(mode="json"),
        "number": len(claimed(task)),
    }
    stored = _noted_settings(task, method.name, task.note(f"{method.name}/{NOTE}", document))
    changed = differences(stored, settings) if stored and settings else []
    if changed:
        raise SettingsError(
            f"{task.folder.name}, {method.name}: expected the settings that it was begun with; "
            f"these differ: {'; '.join(changed)}. {REMEDY}"
        )


def _noted_method(name: str, note: Mapping[str, Any]) -> Method:
    return Method(name, note["preset"], tuple(note["assignments"]))


def _noted_settings(task: Task, name: str, note: Mapping[str, Any]) -> Settings | None:
    """Return the settings that a method was begun with; None for a peer.

    Older folders tell preset and assignments only: what the preset was then is unknown, and taken
    for what it is.
    """
    if note.get("settings") is None:
        return _noted_method(name, note).settings
    try:
        return build_settings(note["settings"])
    except SettingsError as error:
        raise SettingsError(
            f"{task.folder.name}, {name}: expected settings that still exist; {error} {REMEDY}"
        ) from error
