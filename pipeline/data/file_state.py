"""Whether a case is as it was when it was read: its files' sizes, times and inodes, in a digest."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.datalist import Case
from pipeline.versions import code_digest

# A file written twice within one tick of its file system's clock has the same times both times; the
# coarsest clock is FAT's, with two seconds. What is younger than that is not remembered.
SETTLED_NS = 3 * 10**9
PACKAGES = ("numpy", "nibabel", "itk", "pydicom")
CODE = ("pipeline/errors.py", "pipeline/data/*.py", "transforms/*.py")


def case_state(case: Case, *, expectations: Mapping[str, Any]) -> str | None:
    """Return a SHA-256 of all that the check of `case` depends on, without reading its images.

    That is: name, size, inode, and times of modification and of change of every file (the latter
    cannot be set back as the former can), what the list says about the case, what it is held
    against (`expectations`, plain JSON values), and the code that checks. None where a file is
    missing, or was changed so recently that its times say nothing.
    """
    try:
        files = [
            [_file_state(file) for file in _files_of(path)]
            for path in (*case.images, *([case.label] if case.label else []))
        ]
    except OSError:
        return None  # whoever reads it then says what is wrong
    newest = max((time_ns for part in files for file in part for time_ns in file[3:]), default=0)
    if newest > time.time_ns() - SETTLED_NS:
        return None
    code = code_digest(CODE, packages=PACKAGES)
    content = [code, case.id, case.label_values, dict(expectations), files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files_of(path: Path) -> list[Path]:
    """Return `path` itself, and all that lies in it if it is a folder with a DICOM series."""
    return [path, *sorted(path.iterdir())] if path.is_dir() else [path]


def _file_state(path: Path) -> tuple[str, int, int, int, int]:
    status = os.stat(path)  # noqa: PTH116 - of what a link leads to
    return path.name, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
