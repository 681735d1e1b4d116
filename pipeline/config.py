"""Every setting, one model per stage, and the presets."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import SettingsError
from pipeline.presets import PRESETS

Voxels = Annotated[int, Field(ge=0)]
Edge = Annotated[int, Field(ge=1)]
Margins = tuple[tuple[Voxels, Voxels], tuple[Voxels, Voxels], tuple[Voxels, Voxels]]


class Stage(BaseModel):
    """Base of all stages: unknown keys, silent type changes, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


AnyStage = TypeVar("AnyStage", bound=Stage)


class PreprocessingSettings(Stage):
    """From a loaded case to the network's input; stored in the checkpoint, never retyped."""

    border_crop: Margins | None = Field(
        ((8, 8), (8, 8), (6, 5)), description="voxels removed at both ends of X, Y and Z"
    )
    brain_box: bool = Field(False, description="crop to the box that holds the brain")
    bias_field_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="how much of each modality's slow change of brightness across the brain is "
        "taken out; null: nothing is",
    )
    normalization: Literal["minmax", "zscore"] | None = Field(
        "minmax", description="per modality: to 0..1 over everything, or z-score over the brain"
    )
    decimals: int | None = Field(3, ge=0, description="decimals kept by the min-max scaling")
    gaussian_sigma: float | None = Field(1.0, gt=0, description="Gaussian smoothing, in voxels")
    sharpen_strength: float | None = Field(
        0.3, gt=0, description="factor of the Laplacian subtracted after smoothing"
    )
    spacing_mm: float | None = Field(
        None, gt=0, description="resample to this isotropic spacing; null keeps the case's own"
    )


class DeformationSettings(Stage):
    """Random deformation in space, in one resampling, and the patch that is cut on the way."""

    probability: float = Field(
        0.0, ge=0, le=1, description="of a rotation, and independently of it, of a scaling"
    )
    rotation_degrees: float = Field(30.0, ge=0, le=180, description="largest, about each axis")
    scale: float = Field(1.4, ge=1, description="largest factor; the least is 1 / this")
    elastic_probability: float = Field(0.0, ge=0, le=1, description="of a smooth bending")
    elastic_voxels: float = Field(
        2.0, ge=0, description="largest standard deviation of the bending's displacements"
    )
    patch_size: tuple[Edge, Edge, Edge] | None = Field(
        None, description="voxels that the network is trained on; null: the whole case"
    )
    foreground_probability: float = Field(
        0.33, ge=0, le=1, description="that a patch lies about a voxel of tumour"
    )


Share = Annotated[float, Field(gt=0, le=1)]
Multiple = Annotated[float, Field(ge=1)]
Length = Annotated[float, Field(gt=0)]


class AppearanceSettings(Stage):
    """Random changes of the intensities within the brain; the strengths are nnU-Net's."""

    noise_probability: float = Field(0.0, ge=0, le=1, description="of Gaussian noise")
    noise_sigma: float = Field(
        0.1, ge=0, description="largest standard deviation, in normalised intensities"
    )
    blur_probability: float = Field(0.0, ge=0, le=1, description="of a Gaussian filter")
    blur_sigma: tuple[Length, Length] = Field(
        (0.5, 1.0), description="least and largest standard deviation, in voxels"
    )
    brightness_probability: float = Field(0.0, ge=0, le=1, description="of a factor")
    brightness: float = Field(0.25, ge=0, lt=1, description="factor drawn from 1 ± this")
    offset_probability: float = Field(0.0, ge=0, le=1, description="of a number that is added")
    offset: float = Field(0.15, ge=0, description="number drawn from ± this")
    contrast_probability: float = Field(
        0.0, ge=0, le=1, description="of a factor of the differences from the mean"
    )
    contrast: tuple[Share, Multiple] = Field((0.75, 1.25), description="least and largest factor")
    gamma_probability: float = Field(
        0.0, ge=0, le=1, description="of a power law; one in four is of inverted intensities"
    )
    gamma: tuple[Share, Multiple] = Field((0.7, 1.5), description="least and largest exponent")
    low_resolution_probability: float = Field(0.0, ge=0, le=1, description="of coarser voxels")
    low_resolution: float = Field(0.5, gt=0, le=1, description="least zoom; the largest is 1")


class AugmentationSettings(Stage):
    """Random changes of the training cases, drawn anew per (seed, epoch, case)."""

    rotation_degrees: float = Field(20.0, ge=0, le=180, description="largest in-plane rotation")
    rotation_probability: float = Field(1.0, ge=0, le=1)
    flip_axes: tuple[Literal[0, 1, 2], ...] = Field((0, 1), description="0 X, 1 Y, 2 Z")
    flip_probability: float = Field(0.5, ge=0, le=1, description="of each axis on its own")
    intensity_scale: float = Field(0.0, ge=0, lt=1, description="factor drawn from 1 ± this")
    intensity_shift: float = Field(0.0, ge=0, description="offset drawn from ± this")
    deformation: DeformationSettings = DeformationSettings()
    appearance: AppearanceSettings = AppearanceSettings()


class NetworkSettings(Stage):
    """Which network, and the settings of its builder in `networks.NETWORKS`."""

    name: str = Field("UNet3D", description="a key of networks.NETWORKS")
    outputs: Literal["classes", "regions"] = Field(
        "classes",
        description="one per class, by softmax, or one per region (WT, TC, ET), by sigmoid",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="passed to the builder")


class TrainingSettings(Stage):
    """The optimisation."""

    max_epochs: int = Field(4, ge=1)
    batch_size: int = Field(1, ge=1)
    loss: Literal["cross_entropy", "dice", "dice_ce"] = "cross_entropy"
    dice_smoothing: float = Field(
        1e-5, gt=0, description="voxels added to Dice; more speaks against finding what is absent"
    )
    learning_rate: float = Field(1e-3, gt=0)
    adam_epsilon: float = Field(1e-7, gt=0, description="Keras' default, not torch's")
    weight_decay: float = Field(0.0, ge=0, description="decoupled (AdamW) where above 0")
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    warmup_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of all iterations in which the rate rises linearly"
    )
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of all gradients")
    accumulation_steps: int = Field(1, ge=1, description="batches per optimiser step")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="of the moving average of the weights, which is what is kept"
    )
    amp: bool = Field(True, description="mixed precision; has an effect on CUDA only")
    torch_compile: bool = Field(
        False, description="fuse kernels: a minute at the start, and a C++ compiler is needed"
    )
    deterministic: bool = Field(
        True, description="ask torch for deterministic kernels, so that a resumed run is equal"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="stop after this many validations without a better score"
    )


class ValidationSettings(Stage):
    """How often, and with how many pictures, the network is validated."""

    every_epochs: int | None = Field(
        1,
        ge=1,
        description="null: never; the fold is then not read, and the last state is the model",
    )
    num_pictures: int = Field(3, ge=0, description="cases drawn into TensorBoard each time")


class CheckpointSettings(Stage):
    """When the state of the run is saved, besides the end of each epoch and a signal."""

    every_iterations: int | None = Field(None, ge=1)


class LoadingSettings(Stage):
    """Memory and workers of the data path."""

    cache_memory_fraction: float = Field(
        0.5, ge=0, le=1, description="share of the free memory that cached cases may take"
    )
    num_workers: int = Field(
        0, ge=0, description="processes that augment beside the training; 0: threads do"
    )
    mask_nonfinite: bool = Field(False, description="NaN and infinite voxels are taken for 0")


class InferenceDefaults(Stage):
    """How masks are made with the model unless the command line says otherwise."""

    window: Literal["auto"] | tuple[Edge, Edge, Edge] | None = Field(
        "auto",
        description="sliding window in voxels; null: one pass; auto: as memory allows. A network "
        "with instance normalisation that was trained on patches needs windows of their size",
    )
    flips: bool = Field(False, description="mean over all mirrorings of X, Y and Z")
    min_et_volume_ml: float | None = Field(
        None, gt=0, description="a smaller enhancing tumour is taken for necrotic core"
    )
    min_component_ml: float | None = Field(
        None, gt=0, description="a smaller component of the whole tumour is taken for background"
    )


class Settings(Stage):
    """All settings of a run; saved with it as `settings.json`."""

    seed: int = Field(0, ge=0, lt=2**31)
    fold: int | None = Field(None, ge=0, description="fold to validate on")
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    loading: LoadingSettings = LoadingSettings()
    inference: InferenceDefaults = InferenceDefaults()

    @model_validator(mode="after")
    def _stops_by_what_it_sees(self) -> Settings:
        if self.training.early_stopping is not None and self.validation.every_epochs is None:
            raise ValueError(
                "training.early_stopping counts validations, and validation.every_epochs is null"
            )
        return self


class InferenceSettings(InferenceDefaults):
    """How masks are made with trained networks; stored beside every mask."""

    overlap: float = Field(0.5, ge=0, lt=1, description="share of a window that the next covers")
    amp: bool = Field(True, description="half precision on a GPU, as in training")
    brain_only: bool = Field(
        True, description="outside the box of the brain all is background, and not computed"
    )
    probabilities: bool = Field(False, description="write the probability of each class")
    uncertainty_samples: Literal[0] | Annotated[int, Field(ge=2)] = Field(
        0, description="passes with dropout on; 0 writes no uncertainty"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the dropout in those passes")
    fill_holes: bool = Field(False, description="background that tumour encloses becomes tumour")
    largest_component: bool = Field(False, description="only the largest tumour stays")
    resample_to: str | None = Field(
        None, description="modality whose grid the others are brought to, if they differ"
    )
    mask_nonfinite: bool = Field(False, description="NaN and infinite voxels are taken for 0")


def preset(name: str) -> dict[str, Any]:
    """Return the values in which preset `name` differs from the defaults.

    Raises:
        SettingsError: There is no preset of that name.
    """
    if name not in PRESETS:
        hint = _did_you_mean(name, PRESETS)
        raise SettingsError(f"preset: expected one of {', '.join(PRESETS)}; found {name!r}.{hint}")
    return PRESETS[name]


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of settings (all or only some of them).

    Raises:
        SettingsError: The file is missing or no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(
            f"--config {path.name}: expected a JSON file; {error.strerror}"
        ) from error
    except ValueError as error:
        raise SettingsError(f"--config {path.name}: expected a JSON file; {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"--config {path.name}: expected a JSON object of settings")
    return values


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `["training.max_epochs=10", ...]` into nested values; the right side is JSON or text.

    Raises:
        SettingsError: An assignment has no `=`, or names a setting below a plain value.
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set: expected STAGE.NAME=VALUE; found {assignment!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *stages, name = key.split(".")
        target = nested
        for stage in stages:
            target = target.setdefault(stage, {})
            if not isinstance(target, dict):
                raise SettingsError(f"--set {assignment}: {stage} already has a plain value")
        target.update(merge(target, {name: value}))
    return nested


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, dictionary by dictionary."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def build_settings(*layers: Mapping[str, Any]) -> Settings:
    """Validate the layers (preset, file, assignments; later ones win) into one `Settings`.

    Raises:
        SettingsError: A key is unknown (the nearest known one is suggested) or a value is wrong;
            all of them are listed.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge(_without_foreign_settings(values, layer), layer)
    return _validated(Settings, values)


def _without_foreign_settings(
    values: Mapping[str, Any], layer: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Drop the settings of a network that `layer` replaces by another: they are not that one's."""
    before, after = values.get("network"), layer.get("network")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return values
    if after.get("name", before.get("name")) == before.get("name"):
        return values
    return {**values, "network": {name: before[name] for name in before if name != "settings"}}


def build_inference_settings(values: Mapping[str, Any]) -> InferenceSettings:
    """Validate how masks are to be made; raises SettingsError as `build_settings` does."""
    return _validated(InferenceSettings, values)


def _validated(stage: type[AnyStage], values: Mapping[str, Any]) -> AnyStage:
    try:
        # As JSON, where the strict mode still takes a list for a tuple.
        return stage.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise SettingsError("\n".join(_describe(dict(e)) for e in error.errors())) from error


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """List every setting as its dotted name."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def differences(left: Settings, right: Settings) -> list[str]:
    """List the settings in which two differ, as `name: left -> right`."""
    pairs = [(key, _value_of(left, key), _value_of(right, key)) for key in known_keys()]
    return [f"{key}: {old!r} -> {new!r}" for key, old, new in pairs if old != new]


def _value_of(settings: Settings, key: str) -> object:
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


# What may differ in a resumed run: more epochs, and what has no effect on the numbers. Windows have
# one, on the validation.
CHANGEABLE_ON_RESUME = (
    "training.max_epochs",
    "loading.cache_memory_fraction",
    "loading.num_workers",
    "checkpoint.",
    "validation.num_pictures",
    "inference.flips",
    "inference.min_",
)


def resumed(stored: Settings, wanted: Settings) -> Settings:
    """Return the settings to resume with.

    Raises:
        SettingsError: `wanted` differs from `stored` in what would make it another run.
    """
    changed = [
        change
        for change in differences(stored, wanted)
        if not change.startswith(CHANGEABLE_ON_RESUME)
    ]
    if changed:
        raise SettingsError(
            "--resume continues a run with its own settings; these differ: "
            + "; ".join(changed)
            + ". Leave them out, or start a new run in another --output-dir."
        )
    return wanted


def require_told_by_checkpoints(stored: Settings, wanted: Settings) -> None:
    """Refuse other ways to make masks for a finished run: its checkpoints are not written again.

    Raises:
        SettingsError: `wanted` differs from `stored` in how masks are made.
    """
    changed = [each for each in differences(stored, wanted) if each.startswith("inference.")]
    if changed:
        raise SettingsError(
            "This run is finished, and its checkpoints stay as they are; these settings differ: "
            + "; ".join(changed)
            + ". Leave them out, and give them to infer where masks are made."
        )


def _describe(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        stages = set(Settings.model_fields)
        return f"{key}: there is no such setting.{_did_you_mean(key, [*known_keys(), *stages])}"
    return f"{key}: {error['msg']}; found {error['input']!r}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
