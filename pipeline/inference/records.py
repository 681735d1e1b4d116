"""What is stored beside a mask: how it was made, of what, and whether it still stands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.content import with_case
from pipeline.data.datalist import Case
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json
from pipeline.data.prediction_files import MASK_SUFFIX, mask_path, record_path
from pipeline.data.reading import faults_told
from pipeline.errors import DataError, Problem, SettingsError

# A hidden name, which no case can have: cases begin with a letter, a digit or an underscore.
REQUEST = ".request.json"
CHUNK_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a DICOM folder: of its files' digests, sorted."""
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder cannot be entered
        digests = sorted(file_digest(file) for file in path.iterdir() if file.is_file())
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def input_digests(case: Case, modalities: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return name and digest of each image of a case; a single 4D file is under "image".

    Raises:
        DataError: Files are missing or cannot be read; all of them are named.
    """
    names = modalities if len(case.images) == len(modalities) else ["image"]
    digests: dict[str, dict[str, str]] = {}
    problems: list[Problem] = []
    for name, path in zip(names, case.images, strict=True):
        try:
            with faults_told(path.name):
                digests[name] = {"file": path.name, "sha256": file_digest(path)}
        except DataError as error:
            problems += with_case(error, case.id)
    if problems:
        raise DataError.of(*problems)
    return digests


def outputs_of(paths: Iterable[Path]) -> dict[str, str]:
    """Return the digest of each written file by its name."""
    return {path.name: file_digest(path) for path in paths}


def write_record(folder: Path, case: str, record: Mapping[str, Any]) -> None:
    """Write a case's record: it comes last, and says that everything before it is whole."""
    replace_file(record_path(folder, case), json_bytes(dict(record)))


def remove_outdated(folder: Path, case: str, *, kept: Iterable[str]) -> None:
    """Remove what an earlier record of the case names and a new one does not.

    Probabilities of one model beside the mask of another would be taken for its own.
    """
    record = _stored_record(folder, case)
    for name in set({} if record is None else record["outputs"]) - set(kept):
        if name.startswith(case) and name == Path(name).name:
            (folder / name).unlink(missing_ok=True)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json_bytes(value)).hexdigest()


def finished_record(folder: Path, case: str, origin: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of a case whose files are there unchanged; None if it is to be done.

    `origin` are the keys of the record that say what it was made of, and how.

    A record that cannot be read means that the case is not known to be finished.
    """
    record = _stored_record(folder, case)
    if record is None or any(record.get(key) != origin[key] for key in origin):
        return None
    whole = mask_path(folder, case).name in record["outputs"] and all(
        Path(name).name == name and _is_ours(folder / name) and file_digest(folder / name) == digest
        for name, digest in record["outputs"].items()
    )
    return record if whole else None


def _stored_record(folder: Path, case: str) -> dict[str, Any] | None:
    """Return the record of a case, with its `outputs`; None where there is none that can be used.

    It may be damaged, or somebody else's file of that name.
    """
    path = record_path(folder, case)
    try:
        record = read_json(path) if _is_ours(path) else None
    except DataError:
        return None
    usable = isinstance(record, dict) and isinstance(record.get("outputs"), dict)
    return record if usable else None


def claim_folder(folder: Path, request: Mapping[str, Any], *, overwrite: bool) -> None:
    """Let `folder` hold masks made as `request` says, and no others.

    Args:
        folder: There already, and locked.
        request: What decides a mask, as plain JSON: models, labels, settings.
        overwrite: Give up what is there and was made otherwise, mask by mask.

    Raises:
        SettingsError: There are masks made otherwise, or nobody knows how; what differs is named.
    """
    path = folder / REQUEST
    stored = read_json(path) if _is_ours(path) else None
    mask = next(folder.glob(f"*{MASK_SUFFIX}"), None)
    if mask is not None and not overwrite:
        _require_same(folder, mask, stored, request)
    if stored != request:
        replace_file(path, json_bytes(dict(request)))


def _is_ours(path: Path) -> bool:
    """Whether a file is at `path`: a link is none that this project wrote, and is not followed."""
    return path.is_file() and not path.is_symlink()


def _require_same(folder: Path, mask: Path, stored: Any, request: Mapping[str, Any]) -> None:
    remedy = "Choose another folder, or replace the masks with --overwrite."
    if stored is None:
        raise SettingsError(
            f"{folder.name}: there are masks already, such as {mask.name}, and no record of how "
            f"they were made. {remedy}"
        )
    known = stored if isinstance(stored, dict) else {}
    differing = [name for name in request if known.get(name) != request[name]]
    if differing:
        raise SettingsError(
            f"{folder.name}: its masks are made with other {' and '.join(differing)}. {remedy}"
        )
