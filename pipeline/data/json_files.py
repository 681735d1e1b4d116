"""Reading JSON from strangers strictly, and the one way that JSON is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import DataError, Problem

MAX_BYTES = 64 * 2**20
MAX_VALUES = 300_000
MAX_KEY_LENGTH = 1000


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of a UTF-8 JSON file (a byte-order mark is accepted).

    Stricter than `json.load`: a key that is there twice, too long or unprintable, ``NaN`` and
    ``Infinity``, nesting too deep for the parser, and a file of more than `max_bytes` or
    `MAX_VALUES` values (not parsed at all) raise `DataError`; so does a file that is missing, not a
    regular file, not UTF-8, or not JSON.
    """
    return parse_json(_read_bytes(path, max_bytes), path=path)


def parse_json(content: bytes, *, path: Path) -> Any:
    """Return the value of JSON text as `read_json` does, as if read from `path`."""
    # No text with fewer commas holds more values: tells what would fill the memory beforehand.
    if content.count(b",") > MAX_VALUES:
        raise _fault(
            path,
            kind="file-too-large",
            expected=f"at most {MAX_VALUES} values",
            found="more",
            remedy="A data list of ten thousand cases has about 90000: is this the right file?",
        )
    try:
        return json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise _fault(
            path,
            kind="json-nesting",
            expected="JSON nested a few levels deep",
            found="nesting that exhausts the parser",
            remedy="Write the file anew; a data list needs four levels.",
        ) from None
    except ValueError as error:  # not UTF-8, not JSON, or refused by one of the two hooks
        raise _fault(
            path,
            kind="json-syntax",
            expected="strict JSON in UTF-8",
            found=str(error),
            remedy="Correct the file at this place.",
        ) from None


def json_bytes(value: Any) -> bytes:
    """Return `value` as indented UTF-8 JSON: the same bytes for the same value, every time."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        # A device or a pipe could deliver bytes for ever, and even opening one may wait.
        if path.exists() and not path.is_file():
            raise _fault(
                path,
                kind="not-a-file",
                expected="a JSON file",
                found="a folder or a device",
                remedy="Name the file itself.",
            )
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise _fault(
            path,
            kind="unreadable-file",
            expected="a JSON file that can be read",
            found=error.strerror or type(error).__name__,
            remedy="Correct the path or the permissions.",
        ) from error
    if len(content) > max_bytes:
        raise _fault(
            path,
            kind="file-too-large",
            expected=f"at most {max_bytes} bytes",
            found="more",
            remedy="A data list of ten thousand cases has about 6 MB: is this the right file?",
        )
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            raise ValueError(f"the key {key[:40]!r}, which is too long or cannot be printed")
        if key in value:
            raise ValueError(f"the key {key!r} twice in the same object")
        value[key] = item
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is not JSON")


def _fault(path: Path, *, kind: str, expected: str, found: str, remedy: str) -> DataError:
    return DataError.of(
        Problem(
            case="JSON", kind=kind, file=str(path), expected=expected, found=found, remedy=remedy
        )
    )
