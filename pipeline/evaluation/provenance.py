"""What the file beside a prediction says of its origin: the models, and what they trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.json_files import read_json
from pipeline.errors import DataError, Problem

SEEN = "seen_in_training"


@dataclass(frozen=True, order=True)
class ModelOrigin:
    """One model that made a prediction; `digest` is the SHA-256 of its weights, "" if unknown."""

    name: str
    digest: str


@dataclass(frozen=True)
class Provenance:
    """Where a prediction comes from; nothing is known of other software's.

    `seen_in_training` is True if one of the models trained on the case, False if all are known not
    to have, None if that is not known.
    """

    models: tuple[ModelOrigin, ...] = ()
    seen_in_training: bool | None = None


def read_provenance(path: Path, *, case: str, labels: Mapping[str, int]) -> Provenance:
    """Read `<case>.json` beside a prediction; where it is absent, nothing is known.

    `labels` are the data list's (name -> voxel value); a file that states others describes a mask
    in another coding.

    Raises:
        DataError: The file is not strict JSON of the form that inference writes, or belongs to
            another case or another coding.
    """
    if not path.exists():
        return Provenance()
    document = read_json(path)
    if not isinstance(document, dict):
        raise _fault(
            path, case, "prediction-json", "an object with a key 'models'", _type(document)
        )
    for key, own in (("case", case), ("labels", dict(labels))):
        if document.get(key, own) != own:
            raise _fault(path, case, f"prediction-{key}", f"{key} {own}", str(document[key]))
    return _provenance(document.get("models", []), path=path, case=case)


def _provenance(models: Any, *, path: Path, case: str) -> Provenance:
    if not isinstance(models, list) or not all(map(_is_model, models)):
        raise _fault(
            path,
            case,
            "prediction-json",
            f"'models' as a list of objects with a text 'name', and {SEEN} true, false or null",
            str(models)[:200],
        )
    seen = [model.get(SEEN) for model in models]
    return Provenance(
        models=tuple(ModelOrigin(model["name"], model.get("digest", "")) for model in models),
        seen_in_training=True if True in seen else None if None in seen or not seen else False,
    )


def _is_model(model: Any) -> bool:
    return (
        isinstance(model, dict)
        and isinstance(model.get("name"), str)
        and isinstance(model.get("digest", ""), str)
        and (model.get(SEEN) is None or isinstance(model[SEEN], bool))
    )


def _type(value: Any) -> str:
    return f"a JSON {type(value).__name__}"


def _fault(path: Path, case: str, kind: str, expected: str, found: str) -> DataError:
    return DataError.of(
        Problem(
            case=case,
            kind=kind,
            file=f"{path.parent.name}/{path.name}",
            expected=expected,
            found=found,
            remedy="Restore the file that inference wrote, or remove it if it is something else.",
        )
    )
