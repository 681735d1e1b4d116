"""Generations of a run's checkpoints: `last` keeps the one before it; the newest whole is found."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.model.checkpoint import (
    BEST,
    LAST,
    NEWER_FORMAT,
    is_whole,
    load_checkpoint,
    save_checkpoint,
)

PREVIOUS = "last.previous.pt"
"""Name of the checkpoint that was `last` before the present one."""

# What file systems without hard links say (exFAT, some network shares).
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def save_last(folder: Path, content: Mapping[str, Any]) -> None:
    """Save `content` as `last`; what was `last` becomes `PREVIOUS`.

    The new file is on the disk before the old names move, so that at any moment one generation is
    whole. Raises what `save_checkpoint` raises.
    """
    save_checkpoint(folder / LAST, content, before_naming=lambda: _keep_previous(folder))


def load_newest(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the content of `last`, or of the newest whole checkpoint, and a remark in that case.

    Which one is newest is told by the iteration and the finished epochs stored in it, never by the
    time of the file: clocks are set back, and copies have new times. The remark is empty where
    `last` is whole.

    Raises:
        DataError: No checkpoint is whole (all are named), or `last` is from a newer version.
    """
    try:
        return load_checkpoint(folder / LAST), ""
    except DataError as error:
        problems = list(error.problems)
    if problems[0].kind == NEWER_FORMAT:
        raise DataError.of(*problems)
    whole = []
    for name in (PREVIOUS, BEST):
        try:
            content = load_checkpoint(folder / name)
        except DataError as error:
            problems += error.problems
        else:
            whole.append((_position(content), name, content))
    if not whole:
        raise DataError.of(*problems)
    (iteration, _), name, content = max(whole, key=lambda found: found[0])
    return content, (
        f"{LAST}: {problems[0].found}. The run goes on from {name}, the newest whole checkpoint, "
        f"after iteration {iteration}; what came later is done again."
    )


def _position(content: Mapping[str, Any]) -> tuple[int, int]:
    """Return iteration and finished epochs: an epoch's last iteration comes before its end."""
    counters = content["progress"]["counters"]
    return counters["iteration"], len(counters["history"])


def _keep_previous(folder: Path) -> None:
    last, previous = folder / LAST, folder / PREVIOUS
    # What was damaged since it was saved must not displace a whole one; a link is not followed.
    if last.is_symlink() or not is_whole(last):
        return
    second_name = folder / f".{uuid.uuid4().hex}.tmp.{PREVIOUS}"
    try:
        os.link(last, second_name)
        second_name.replace(previous)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        last.replace(previous)  # for a moment there is no `last`: PREVIOUS is found instead
    finally:
        # Still there where both names belong to one file, after a kill between two renamings.
        second_name.unlink(missing_ok=True)
