"""What a run's folder holds from an earlier start: nothing, a state to go on from, or the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.model.checkpoint import BEST, LAST
from pipeline.model.generations import PREVIOUS, load_newest
from pipeline.training.progress import Progress
from pipeline.training.run import METRICS
from pipeline.training.summary import SUMMARY

# What there is only after a checkpoint was saved. Settings, log and curves are there before: where
# they are alone, a run ended before anything was worth keeping.
TRACES = (LAST, PREVIOUS, BEST, METRICS, SUMMARY)


@dataclass(frozen=True)
class StoredState:
    """A checkpoint's content, and a remark where it is not that of `last`."""

    content: Mapping[str, Any]
    remark: str = ""


def stored_state(folder: Path, *, resume: bool) -> StoredState | None:
    """Return the state to resume from, or None where a new run starts in `folder`.

    Raises:
        SettingsError: There is a run in the folder and it is not to be resumed.
        DataError: None of its checkpoints can be used; a new run is never started instead.
    """
    if not any((folder / name).exists() for name in TRACES):
        return None
    if not resume:
        raise SettingsError(
            f"{folder.name}: there is a run in this folder. Continue it with --resume, or choose "
            "another --output-dir."
        )
    return StoredState(*load_newest(folder))


def finished_progress(
    state: StoredState | None, folder: Path, *, max_epochs: int, early_stopping: int | None
) -> Progress | None:
    """Return how a run went whose state says that nothing is left to do, else None.

    Raises:
        SettingsError: It is beyond `max_epochs`, and none of its weights were kept before.
    """
    if state is None:
        return None
    progress = Progress.from_dict(state.content["progress"]["counters"])
    if not progress.is_finished(max_epochs=max_epochs, early_stopping=early_stopping):
        return None
    if not (folder / BEST).exists():
        raise SettingsError(
            f"training.max_epochs: {folder.name} has {progress.num_epochs_done} epochs behind it, "
            f"and keeps {BEST} at its end only; expected more than that, found {max_epochs}. Give "
            "it more epochs."
        )
    return progress
