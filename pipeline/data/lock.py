"""One run per folder: a lock that the kernel frees when its process dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import ResourceError

LOCK_NAME = "run.lock"

_handles: set[IO[str]] = set()


def _let_go() -> None:
    for handle in _handles:
        handle.close()


# A forked process shares the lock: the workers of a killed run would hold it until they notice.
os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; a symbolic link under its name is replaced, not followed.

    Raises:
        ResourceError: The folder cannot be written to, or another process holds the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK_NAME
        if path.is_symlink():
            path.unlink()
        handle = path.open("a+")
    except OSError as error:
        raise ResourceError(
            f"{folder.name}: cannot be written to: {error.strerror}. Choose another --output-dir."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise ResourceError(
                f"{folder.name}: in use by {holder}. Wait for it or choose another --output-dir."
            ) from error
        handle.truncate(0)
        # Past the buffer of `handle`, which would try once more when it is closed.
        try:
            os.write(handle.fileno(), f"process {os.getpid()}".encode())
        except OSError as error:
            raise ResourceError(
                f"{folder.name}: cannot be written to: {error.strerror}. Free some space or choose "
                "another --output-dir."
            ) from error
        _handles.add(handle)
        try:
            yield
        finally:
            _handles.remove(handle)
