"""Preprocessed cases in files of a folder, so that no run has to read and preprocess them again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.datalist import Case
from pipeline.data.files import TEMPORARY_NAME, replace_file, require_writable
from pipeline.data.packing import FORMAT, pack_case, unpack_case
from pipeline.errors import ResourceError
from pipeline.versions import code_digest

LOG = logging.getLogger(__name__)
SUFFIX = ".case"
PACKAGES = ("numpy", "torch", "monai", "nibabel")
CODE = ("pipeline/data/*.py", "transforms/*.py")
ABANDONED_S = 24 * 3600.0  # no writer takes that long


class DiskCache:
    """Gives the compact case of a `Case` from its file, which it writes where there is none.

    A file's name is a digest of all that its content depends on: the bytes of the case's files,
    what the list says of it, the settings, the versions and the code. So a file may be old, and is
    then not found, but never wrong; several runs can share the folder. Its own SHA-256 tells
    damage, not forgery: keep the folder where only you can write.

    Args:
        folder: Is made, with those above it.
        prepare: Reads and preprocesses a case, and makes it compact.
        settings: What `prepare` depends on besides the case: plain JSON values.

    Raises:
        ResourceError: The folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prepare: Callable[[Case], dict[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.prepare = prepare
        self.settings = dict(settings)
        self._keys: dict[Case, str] = {}
        require_writable(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
        except OSError as error:
            raise ResourceError(f"{folder.name}: cannot be made: {error.strerror}.") from error

    def __call__(self, case: Case) -> dict[str, Any]:
        """Return the compact case; raises what `prepare` and `replace_file` raise."""
        return self._case(case)[0]

    def packed(self, case: Case) -> bytes:
        """Return the case as the bytes of its file; `unpack_case` takes them and `key`."""
        return self._case(case)[1]

    def key(self, case: Case) -> str:
        """Return the digest of all that the case's file depends on; reads its images once."""
        if case not in self._keys:
            self._keys[case] = self._digest(case)
        return self._keys[case]

    def path(self, case: Case) -> Path:
        """Return where the case's file is, or would be."""
        return self.folder / f"{self.key(case)}{SUFFIX}"

    def _case(self, case: Case) -> tuple[dict[str, Any], bytes]:
        path, key = self.path(case), self.key(case)
        try:
            packed = path.read_bytes()
            return unpack_case(packed, name=key), packed
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            LOG.warning(
                "%s: the cached file %s... is not used, but made anew: %s",
                case.id,
                path.name[:12],
                error,
            )
        compact = self.prepare(case)
        packed = pack_case(compact, name=key)
        # Files that have changed meanwhile belong under another name.
        if self._digest(case) == key:
            replace_file(path, packed)
        return compact, packed

    def _digest(self, case: Case) -> str:
        files = [case.images, [case.label] if case.label else []]
        content = {
            "format": FORMAT,
            "code": code_digest(CODE, packages=PACKAGES),
            "case": [case.id, case.label_values],
            "settings": self.settings,
            "files": [[_content_digest(path) for path in part] for part in files],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_disk(cache: DiskCache, *, num_cases: int, bytes_per_case: int) -> None:
    """Say what the cache of `num_cases` will take, and refuse a disk without room for it.

    Files that are there already count as if they were those of these cases.

    Raises:
        ResourceError: With the bytes needed and free.
    """
    there = sum(path.stat().st_size for path in cache.folder.glob(f"*{SUFFIX}"))
    needed = max(num_cases * bytes_per_case - there, 0)
    free = shutil.disk_usage(cache.folder).free
    LOG.info(
        "Cache on disk: about %.1f MB a case, %.2f GB for %d cases, of which %.2f GB are there",
        bytes_per_case / 1e6,
        num_cases * bytes_per_case / 1e9,
        num_cases,
        there / 1e9,
    )
    if needed > free:
        raise ResourceError(
            f"{cache.folder.name}: not enough disk for the cached cases: needed about "
            f"{needed / 1e6:.1f} MB more, free {free / 1e6:.1f} MB. Free some space, choose "
            "another --cache-dir, or leave it out."
        )


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left; another run's writer may be at work, though."""
    for path in folder.iterdir():
        if TEMPORARY_NAME.fullmatch(path.name) and path.suffix == SUFFIX:
            age_s = time.time() - path.stat().st_mtime
            if age_s > ABANDONED_S:
                path.unlink(missing_ok=True)


def _content_digest(path: Path) -> list[str]:
    """Return the name and the SHA-256 of a file, or of all that lie in the folder of a series."""
    try:
        parts = sorted(path.iterdir()) if path.is_dir() else [path]
        return [
            text
            for part in parts
            for text in (part.name, hashlib.sha256(part.read_bytes()).hexdigest())
        ]
    except OSError:
        return [path.name, "unreadable"]  # whoever reads it then says what is wrong
