"""Replacing a file in one step: either the old content or the new one is there, never a part."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ResourceError

TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.tmp\..+")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(
    path: Path, content: bytes, *, verify: Callable[[Path], None] | None = None
) -> None:
    """Write `content` to `path` so that a crash at any moment leaves the old file or the new one.

    `verify` is called with the temporary file, which ends in the final name; if it raises, nothing
    takes that name. A symbolic link at `path` is replaced, not followed. Raises ResourceError (with
    the bytes needed and free if the disk is full); the temporary file is then removed.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp.{path.name}")
    try:
        try:
            _write_and_sync(temporary, content)
            if verify is not None:
                verify(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _resource_error(path, len(content), error) from error


def sweep_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`; nobody else may be writing there."""
    for path in folder.iterdir():
        if TEMPORARY_NAME.fullmatch(path.name):
            path.unlink()


def _write_and_sync(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:  # x: a file or link planted under this name is an error
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the new name itself must survive a power cut
    finally:
        os.close(descriptor)


def _resource_error(path: Path, num_bytes: int, error: OSError) -> ResourceError:
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(path.parent).free
        return ResourceError(
            f"{path.name}: the disk is full: {num_bytes} bytes needed, {free} bytes free. "
            "Free some space or choose another folder."
        )
    return ResourceError(
        f"{path.name}: cannot be written: {error.strerror}. Choose a folder that can be written to."
    )
