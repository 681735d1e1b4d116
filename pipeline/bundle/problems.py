"""How the gate says what is wrong with a bundle."""

from __future__ import annotations

from pipeline.errors import DataError, Problem

EXPORT_AGAIN = "Nothing was exported. Export the model again; do not edit a bundle by hand."


def problem(
    kind: str, *, expected: str, found: str, file: str = "", remedy: str = EXPORT_AGAIN
) -> DataError:
    """Return the error that keeps a bundle from getting its name."""
    return DataError.of(
        Problem(
            case="bundle",
            kind=f"gate-{kind}",
            file=file,
            expected=expected,
            found=found,
            remedy=remedy,
        )
    )
