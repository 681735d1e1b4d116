"""What MONAI would execute in a configuration, and that a model's own values hold nothing of it."""

from __future__ import annotations

import re
from typing import Any

from pipeline.errors import DataError, Problem

# MONAI evaluates "$...", looks up "@...", and replaces "%..." by (a part of) a file; "@#" and the
# like are relative ids, wherever they stand. A checkpoint can come from anybody.
EXPRESSION = re.compile(r"^\s*[$@%]|[@%](#|::)")
# In a key these would cut an id in two, or turn plain values into a component.
KEY = re.compile(r"[#$@%]|::|^_\w+_$")
TAKEN = frozenset({"pred", "classes", "probabilities", "filename_or_obj"})
"""Keys of a case while it passes the bundle, which no modality can have; see also CASE_KEYS."""


def require_inert(what: str, value: Any) -> None:
    """Refuse a value of a checkpoint that would be more than a value in a MONAI configuration.

    Args:
        what: the value's place, for the message.
        value: plain JSON.

    Raises:
        DataError: a text or a key in it would be executed, or would break MONAI's ids.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if KEY.search(str(key)):
                raise _refusal(what, f"the key {key!r}")
            require_inert(f"{what}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            require_inert(f"{what}[{index}]", item)
    elif isinstance(value, str) and EXPRESSION.search(value):
        raise _refusal(what, repr(value))


def require_usable_modalities(modalities: list[str]) -> None:
    """Refuse modalities called like something that a case holds besides; see `TAKEN`."""
    taken = sorted(TAKEN.intersection(modalities))
    if taken:
        raise _refusal("header.modality", f"the name {', '.join(taken)}")


def _refusal(what: str, found: str) -> DataError:
    return DataError.of(
        Problem(
            case="model",
            kind="not-plain",
            file=what,
            expected="a plain value, which MONAI neither executes nor resolves",
            found=found,
            remedy="Rename it in the data list's header, and train again.",
        )
    )
