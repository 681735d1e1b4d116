"""What people read in a bundle: docs/README.md, the model card, the licence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pipeline
from pipeline.bundle.metadata import INTENDED_USE, required_packages
from pipeline.errors import ResourceError, SettingsError
from pipeline.evaluation.overlap import BACKGROUND
from pipeline.model.trained import TrainedModel

DISTRIBUTION = "brain-tumour-segmentation"
LICENCE = "LICENSE"
# Where an installed package keeps it: since PEP 639, and before.
INSTALLED_LICENCES = (f"licenses/{LICENCE}", LICENCE)

FRONT_MATTER = """---
license: apache-2.0
library_name: monai
pipeline_tag: image-segmentation
tags:
- monai
- medical
- mri
- brain-tumor
- glioma
- 3d-segmentation
---
"""

MAX_NOTES_BYTES = 64 * 2**10

LIMITS = """- It knows images like those it was trained on: skull-stripped, with the modalities
  co-registered and on one grid. Other scanners, sequences, ages or diseases give other results, and
  nothing in the mask says so.
- A network can miss a tumour, and can mark one where there is none. Look at every mask."""
LIMIT_OF_VALIDATION = """- Scores on validation cases that helped to choose the weights are too high
  for new cases."""
LIMIT_OUT_OF_FOLD = """- Scores out of fold are of cases from where the training cases are from.
  Cases from elsewhere can have lower ones."""

EMPTY_REGIONS = """Where a region is empty in both masks its Dice is 1, where it is empty in one of
them 0; no case is left out."""
OF_VALIDATION = """Means over the validation cases of the run that trained it, each on its own
grid."""
OUT_OF_FOLD = """Of its members, not of the ensemble: means over all cases of the cross-validation,
each segmented on its own grid by the one member that was not trained on it. No case is left to
score the ensemble on, whose members together have seen all of them."""


def read_notes(path: Path) -> str:
    """Return the Markdown that is to be in the model card, without the space around it.

    Raises:
        SettingsError: `path` is no file that can be read, is not UTF-8, or is too large.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe may wait for ever
            raise _unusable_notes(path, "a folder or a device")
        with path.open("rb") as file:
            content = file.read(MAX_NOTES_BYTES + 1)
    except OSError as error:
        raise _unusable_notes(path, error.strerror or type(error).__name__) from error
    if len(content) > MAX_NOTES_BYTES:
        raise _unusable_notes(path, "more")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unusable_notes(path, f"another encoding ({error})") from error
    return "\n".join(text.splitlines()).strip()


def _unusable_notes(path: Path, found: str) -> SettingsError:
    return SettingsError(
        f"--notes {path}: expected Markdown in UTF-8, at most {MAX_NOTES_BYTES} bytes; found "
        f"{found}. Name a text file, or leave the option out."
    )


def model_card(
    model: TrainedModel, *, half_precision: bool = False, notes: str | None = None
) -> str:
    """Return the README.md of the folder, which a Hugging Face model repository shows.

    Args:
        model: what is exported.
        half_precision: whether its weights are stored so.
        notes: Markdown about this model.
    """
    stored = "They are stored in half precision; the network computes in single precision.\n"
    about = f"## About this model\n\n{notes}\n\n" if notes else ""
    return f"""{FRONT_MATTER}
# Brain-tumour segmentation in MRI: {model.network["name"]}

A [MONAI](https://monai.io) bundle that labels {_words(list(model.header["labels"])[1:])} in
{_words(model.header["modality"])}. {INTENDED_USE}

The weights are `models/model.safetensors` and, the same for MONAI, `models/model.pt`; the network
and the preprocessing are in `networks/` and `transforms/`.
{stored if half_precision else ""}How to run it, what it was trained on, its scores and its limits:
[docs/README.md](docs/README.md).

{about}{_scores(model)}
"""


def readme(model: TrainedModel, *, ids: Mapping[str, str], models: list[str]) -> str:
    """Return docs/README.md.

    Args:
        model: what is exported.
        ids: the option of each modality in inference.json.
        models: the files in models/.
    """
    modalities = model.header["modality"]
    options = " ".join(f"--{ids[name]} {name}.nii.gz" for name in modalities)
    packages = ", ".join(f"{name} >= {floor}" for name, floor in required_packages(model).items())
    entry = ", ".join(f'"{name}": "case_1/{name}.nii.gz"' for name in modalities)
    return f"""# Brain-tumour segmentation in MRI

{INTENDED_USE}

## Run it

In this folder, with Python and {packages}:

```sh
python -m monai.bundle run --config_file configs/inference.json {options} --output_dir results
```

writes `results/<case>_seg.nii.gz` on the grid of the images. `--save_probabilities True` adds
`<case>_probabilities.nii.gz`, one volume per label in the order below. Many cases are given by a
JSON file, `{{"testing": [{{"case": "case_1", {entry}}}]}}`, whose paths are relative to
`--dataset_dir`:

```sh
{_run("inference", "--cases '%list.json#testing'")}
{_run("evaluate", "--cases '%list.json#training'")}
{_run("train", "--cases '%list.json#training' --fold 0")}
```

The second scores cases that also have a mask under `seg`: `evaluation/metrics.csv`, and for each
case `dice_mean_raw.csv`, whose classes are the regions in the order below. The third goes on
training with the cases outside the fold, and keeps the weights that are best on the fold as
`training/best.pt`; use them with `--ckpt_path training/best.pt`.

All modalities of a case must be 3D NIfTI images on one grid: others are refused.
`sha256sum -c SHA256SUMS` checks the bundle's files. Models: {_words(models)}.

## What goes in and what comes out

Channels, in this order: {_words(modalities)}.

| label | value in the mask |
| --- | --- |
{_rows((name, value) for name, value in model.header["labels"].items())}

| region | labels |
| --- | --- |
{_rows((name, ", ".join(labels)) for name, labels in model.header["regions"].items())}

## What it was trained on

The data list "{_cell(model.header["name"])}", {_num_subjects(model)}; with {_versions(model)}.
{_members(model)}The settings are in `configs/metadata.json` under `trained_model`.

{_scores(model)}

## Limits

{LIMITS}
{LIMIT_OUT_OF_FOLD if model.is_ensemble else LIMIT_OF_VALIDATION}

## Licence

The software and these files: Apache-2.0, see `LICENSE`. What the licence of the training data says
about networks trained on them is not known here.
"""


def _run(config: str, options: str) -> str:
    return (
        f"python -m monai.bundle run --config_file configs/{config}.json \\\n"
        f"    {options} --dataset_dir ."
    )


def licence_text() -> bytes:
    """Return the project's licence, from the installed package or from the source tree.

    Raises:
        ResourceError: it is in neither.
    """
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        texts = []
    else:
        texts = [installed.read_text(name) for name in INSTALLED_LICENCES]
    found = next((text for text in texts if text), None)
    if found is not None:
        return found.encode()
    path = Path(pipeline.__file__).parents[1] / LICENCE
    # Beside an installed package any other package may have left a file of that name.
    if path.is_file() and (path.parent / "setup.cfg").is_file():
        return path.read_bytes()
    raise ResourceError(f"{LICENCE}: not found in the installation. Install the project again.")


def _num_subjects(model: TrainedModel) -> str:
    if model.trained_on is None:
        return "an unknown number of subjects"
    return f"{len(model.trained_on)} subjects"


def _members(model: TrainedModel) -> str:
    """Return what an ensemble is, as a paragraph's beginning; nothing of one network."""
    if not model.is_ensemble:
        return ""
    return (
        f"It is an ensemble, the mean of the probabilities of {model.network['num_members']} "
        "networks, each of which was\ntrained without one fold of these subjects. "
    )


def _versions(model: TrainedModel) -> str:
    return ", ".join(f"{_cell(name)} {_cell(number)}" for name, number in model.versions.items())


def _scores(model: TrainedModel) -> str:
    """Return the Dice of each region beside that of "everything is background", and its title."""
    title = "## Scores on validation cases"
    told, column = OF_VALIDATION, "this network"
    if model.is_ensemble:
        title, column = "## Scores of its members, out of fold", "its members"
        told = f"{OUT_OF_FOLD}{_cleaning(model)}"
    names = [name for name in ("mean", *model.regions) if f"dice_{name}" in model.scores]
    if not names:
        return "## Scores\n\nThese weights were not validated: no scores are known."
    rows = []
    for name in names:
        background = model.scores.get(f"{BACKGROUND}dice_{name}")
        beside = "unknown" if background is None else f"{background:.3f}"
        rows.append((name, f"{model.scores[f'dice_{name}']:.3f}", beside))
    return f"""{title}

| Dice | {column} | "everything is background" |
| --- | --- | --- |
{_rows(rows)}

{told}
{EMPTY_REGIONS}"""


def _cleaning(model: TrainedModel) -> str:
    """Return what has to be done to a mask for it to be one of those that were scored."""
    inference = model.settings["inference"]
    names = [name for name in ("min_et_volume_ml", "min_component_ml") if inference[name]]
    if not names:
        return ""
    values = " and ".join(f"`{name}` of {inference[name]:g}" for name in names)
    return f"""
The masks were cleaned by smallest volumes that were chosen on other folds; for new cases these are
{values}, which this project's `pipeline.infer` applies, and MONAI alone does not."""


def _rows(rows: Iterable[Iterable[object]]) -> str:
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


def _cell(value: object) -> str:
    """Return text that stays in its cell and is no markup."""
    return "".join(f"\\{letter}" if letter in "|<>[]`*" else letter for letter in str(value))


def _words(words: list[str]) -> str:
    return ", ".join(_cell(word) for word in words)
