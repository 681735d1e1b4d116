"""What people read in a bundle: docs/README.md, the model card, the licence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pipeline
from pipeline.bundle.metadata import INTENDED_USE, required_packages
from pipeline.errors import ResourceError
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

LIMITS = """- It knows images like those it was trained on: skull-stripped, with the modalities
  co-registered and on one grid. Other scanners, sequences, ages or diseases give other results, and
  nothing in the mask says so.
- A network can miss a tumour, and can mark one where there is none. Look at every mask.
- Scores on validation cases that helped to choose the weights are too high for new cases."""


def model_card(model: TrainedModel) -> str:
    """Return the README.md of the folder, which a Hugging Face model repository shows."""
    return f"""{FRONT_MATTER}
# Brain-tumour segmentation in MRI: {model.network["name"]}

A [MONAI](https://monai.io) bundle that labels {_words(list(model.header["labels"])[1:])} in
{_words(model.header["modality"])}. {INTENDED_USE}

The weights are `models/model.safetensors` and, the same for MONAI, `models/model.pt`; the network
and the preprocessing are in `networks/` and `transforms/`. How to run it, what it was trained on,
its scores and its limits: [docs/README.md](docs/README.md).

{_scores(model)}
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
The settings of the run are in `configs/metadata.json` under `trained_model`.

## Scores

{_scores(model)}

## Limits

{LIMITS}

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


def _versions(model: TrainedModel) -> str:
    return ", ".join(f"{_cell(name)} {_cell(number)}" for name, number in model.versions.items())


def _scores(model: TrainedModel) -> str:
    """Return the Dice of each region beside that of "everything is background"."""
    names = [name for name in ("mean", *model.regions) if f"dice_{name}" in model.scores]
    if not names:
        return "These weights were not validated: no scores are known."
    rows = []
    for name in names:
        background = model.scores.get(f"{BACKGROUND}dice_{name}")
        beside = "unknown" if background is None else f"{background:.3f}"
        rows.append((name, f"{model.scores[f'dice_{name}']:.3f}", beside))
    return f"""| Dice | this network | "everything is background" |
| --- | --- | --- |
{_rows(rows)}

On the validation cases of the run that trained it, on each case's own grid. Where a region is empty
in both masks its Dice is 1, where it is empty in one of them 0; no case is left out."""


def _rows(rows: Iterable[Iterable[object]]) -> str:
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


def _cell(value: object) -> str:
    """Return text that stays in its cell and is no markup."""
    return "".join(f"\\{letter}" if letter in "|<>[]`*" else letter for letter in str(value))


def _words(words: list[str]) -> str:
    return ", ".join(_cell(word) for word in words)
