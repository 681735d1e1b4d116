"""Replacing a file in one step: either the old content or the new one is there, never a part."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import NO_SPACE, ResourceError

TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.tmp\..+")
PLACE_REMEDY = "Choose a folder that can be written to."


def replace_file(
    path: Path, content: bytes, *, verify: Callable[[Path], None] | None = None
) -> None:
    """Write `content` to `path` so that a crash at any moment leaves the old file or the new one.

    `verify` is called with the temporary file, which ends in the final name; if it raises, nothing
    takes that name. A symbolic link at `path` is replaced, not followed. Raises ResourceError (with
    the bytes needed and free if the disk is full); the temporary file is then removed.
    """
    _replace({path: content}, verify=verify)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together into `folder`, as `replace_file` does.

    None takes its name before all are on the disk: if one cannot be written, all old ones stay.
    """
    _replace({folder / name: content for name, content in contents.items()})


def require_writable(folder: Path) -> None:
    """Raise ResourceError unless `folder`, or the one it is going to be made in, can be written to.

    Nothing is made yet: this is for the start of a command, before hours of work.
    """
    # Not Path.exists: in Python 3.10 to 3.13 it raises where a folder above cannot be entered.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(existing):  # noqa: PTH112 - as above
        raise ResourceError(f"{existing.name}: expected a folder; found a file. {PLACE_REMEDY}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ResourceError(f"{existing.name}: cannot be written to. {PLACE_REMEDY}")


def sweep_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`; nobody else may be writing there.

    A folder under such a name is not ours, and stays. Raises ResourceError.
    """
    for path in folder.iterdir():
        if TEMPORARY_NAME.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
            try:
                path.unlink()
            except OSError as error:
                raise _resource_error(path, 0, error) from error


def _replace(
    contents: Mapping[Path, bytes], *, verify: Callable[[Path], None] | None = None
) -> None:
    temporaries = {
        path: path.with_name(f".{uuid.uuid4().hex}.tmp.{path.name}") for path in contents
    }
    path = next(iter(contents))
    try:
        try:
            for path, content in contents.items():
                _write_and_sync(temporaries[path], content)
                if verify is not None:
                    verify(temporaries[path])
            for path in contents:
                if path.is_dir() and not path.is_symlink():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            for path, temporary in temporaries.items():
                temporary.replace(path)
        finally:
            for temporary in temporaries.values():
                temporary.unlink(missing_ok=True)
        for folder in {path.parent for path in contents}:
            _sync_folder(folder)
    except OSError as error:
        raise _resource_error(path, len(contents[path]), error) from error


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
    return ResourceError(f"{path.name}: cannot be written: {error.strerror}. {PLACE_REMEDY}")
