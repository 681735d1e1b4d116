"""From a case to its mask in a folder: predicted, cleaned, written, verified, recorded."""

from __future__ import annotations

import logging
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes

from pipeline.data.datalist import Case, region_classes_of
from pipeline.data.loading import LoadCase
from pipeline.data.nifti import write_volume
from pipeline.data.prediction_files import PROBABILITIES, map_path, mask_path
from pipeline.data.voxel_volume import region_volumes_ml, voxel_volume_ml
from pipeline.errors import DataError, Problem, SettingsError
from pipeline.inference.cleaning import clean_classes
from pipeline.inference.forecast import forecast
from pipeline.inference.predictor import Predictor
from pipeline.inference.records import digest_of, outputs_of, remove_outdated, write_record
from pipeline.inference.steps import OpenCase, Prediction, Stopwatch
from pipeline.inference.uncertainty import UncertaintySum
from pipeline.model.trained import TrainedModel
from pipeline.versions import versions_of
from transforms import classes_to_values

LOG = logging.getLogger(__name__)
# What a mask may depend on.
PACKAGES = ("torch", "monai", "numpy", "nibabel")


class Segmenter:
    """Makes masks of one kind in one folder.

    A case passes through `open`, `predict`, `write` and `conclude`; each may take place while
    another case is in another one of them.

    Args:
        models: One, or an ensemble.
        folder: Where masks and records go.
        settings: Of `InferenceSettings`, as plain values.
        labels: The voxel value of each label in the masks; names and order are the models'.
        device: Where the networks run.
        num_cases: How many there are going to be, for the forecast of what is needed.
        subjects_known: Whether a data list names the subjects. Where they are guessed from names of
            files, a model that does not know such a name may have seen the patient all the same.

    Raises:
        SettingsError, DataError: See `Predictor`; or what is asked for cannot be had of `models`.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        *,
        folder: Path,
        settings: Mapping[str, Any],
        labels: Mapping[str, int],
        device: torch.device,
        num_cases: int,
        subjects_known: bool = True,
    ) -> None:
        self._is_announced = False
        self.subjects_known = subjects_known
        self.num_cases = num_cases
        self.models = models
        self.folder = folder
        self.settings = settings
        self.labels = dict(labels)
        self.regions = region_classes_of(models[0].header)
        self.device = device
        self.predictor = Predictor(
            models,
            device=device,
            window=settings["window"],
            overlap=settings["overlap"],
            flips=settings["flips"],
            brain_only=settings["brain_only"],
            amp=settings["amp"],
            reads_ahead=num_cases > 1,
        )
        if settings["uncertainty_samples"]:
            self.predictor.require_dropout()  # now, and not after the first case's other passes
        modalities = models[0].header["modality"]
        resample_to = settings["resample_to"]
        if resample_to is not None and resample_to not in modalities:
            raise SettingsError(
                f"--resample-to {resample_to}: choose one of {', '.join(modalities)}"
            )
        target = None if resample_to is None else modalities.index(resample_to)
        self._require_cleanable()
        self.load = LoadCase(
            labels=False,
            resample_to=target,
            mask_nonfinite=settings["mask_nonfinite"],
            modalities=modalities,
        )

    def _require_cleanable(self) -> None:
        """Raise SettingsError now, and not after the first case, if the regions do not allow it."""
        try:
            self._clean(np.zeros((1, 1, 1), dtype=np.uint8), spacing_mm=(1.0, 1.0, 1.0))
        except ValueError as error:
            raise SettingsError(f"--min-et-ml: {error}") from error

    def _clean(
        self, classes: np.ndarray, *, spacing_mm: Sequence[float]
    ) -> tuple[np.ndarray, list[str]]:
        return clean_classes(
            classes,
            regions=self.regions,
            spacing_mm=spacing_mm,
            fill_holes=self.settings["fill_holes"],
            largest_component=self.settings["largest_component"],
            min_component_ml=self.settings["min_component_ml"],
            min_et_volume_ml=self.settings["min_et_volume_ml"],
        )

    def request(self) -> dict[str, Any]:
        """Return what decides the masks of this folder, for `records.claim_folder`."""
        return {
            "models": [model.digest for model in self.models],
            "labels": self.labels,
            "settings": dict(self.settings),
        }

    def origin(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what decides the mask of one case: its record says the same, or is outdated."""
        return {"request": digest_of(self.request()), "inputs": dict(inputs)}

    @property
    def writes_maps(self) -> bool:
        """Whether volumes of floats are written, each as large as a case."""
        return bool(self.settings["probabilities"] or self.settings["uncertainty_samples"])

    def open(self, case: Case, *, inputs: Mapping[str, Any]) -> OpenCase:
        """Read a case and bring it onto the network's grid.

        `inputs` are the digests of its images (`records.input_digests`).

        Raises:
            DataError: The case's images cannot be used.
        """
        watch = Stopwatch()
        item, warnings = self.load.with_warnings(case)
        self._require_modalities(item)
        watch.note("reading")
        prepared = self.predictor.prepare(item)
        watch.note("preprocessing")
        image = item["image"]
        num_voxels, affine = image[0].numel(), image.affine.numpy()
        return OpenCase(case, inputs, prepared, num_voxels, affine, watch, warnings)

    def predict(self, opened: OpenCase) -> Prediction:
        """Let the networks look at an open case.

        Raises:
            ResourceError: Memory ran out.
        """
        opened.watch.begin()
        self._announce(opened.prepared, num_voxels=opened.num_voxels)
        maps: dict[str, np.ndarray] = {}
        told: dict[str, Any] = {}
        if self.settings["probabilities"]:
            found = self.predictor.predict_prepared(opened.prepared)
            classes, maps[PROBABILITIES] = found["classes"], np.asarray(found["probabilities"])
        else:
            classes = self.predictor.classes_prepared(opened.prepared)
        told["windows"] = self.predictor.windows
        if self.settings["uncertainty_samples"]:
            more, told["uncertainty"] = self._uncertainty(opened)
            maps |= more
        opened.watch.note("prediction")
        return Prediction(classes[0].numpy(), maps, told)

    def write(self, opened: OpenCase, prediction: Prediction) -> dict[str, Any]:
        """Write the mask and the maps of a case and return its record, which `conclude` writes.

        Raises:
            ResourceError: A file could not be written; none is there in part.
        """
        opened.watch.begin()
        case, affine = opened.case, opened.affine
        spacing_mm = voxel_sizes(affine)
        classes, changes = self._clean(prediction.classes, spacing_mm=spacing_mm)
        record = {
            "case": case.id,
            "labels": self.labels,
            "volumes_ml": region_volumes_ml(classes, regions=self.regions, affine=affine),
            "grid": {
                "shape": list(classes.shape),
                "spacing_mm": [round(float(size), 6) for size in spacing_mm],
                "orientation": "".join(aff2axcodes(affine)),
            },
            "warnings": [str(warning) for warning in opened.warnings],
            "cleaning": changes,
            **prediction.told,
        }
        paths = [self._write_mask(case, classes, affine)]
        for name, maps in prediction.maps.items():
            paths.append(map_path(self.folder, case.id, name))
            write_volume(paths[-1], maps, affine=affine, dtype=np.float32)
        record |= self._provenance(case) | self.origin(opened.inputs)
        record["outputs"] = outputs_of(paths)
        opened.watch.note("the rest")
        return record | {"seconds": opened.watch.noted}

    def conclude(self, record: Mapping[str, Any]) -> None:
        """Write a case's record, by which its files count, and remove what it makes outdated.

        Raises:
            ResourceError: It could not be written.
        """
        remove_outdated(self.folder, record["case"], kept=record["outputs"])
        write_record(self.folder, record["case"], record)

    def _require_modalities(self, item: Mapping[str, Any]) -> None:
        """Refuse a single file that does not hold one volume for each modality."""
        expected = self.models[0].header["modality"]
        if len(item["image"]) != len(expected):
            raise DataError.of(
                Problem(
                    case=item["case"],
                    kind="modalities",
                    file="",
                    expected=f"{len(expected)} volumes ({', '.join(expected)})",
                    found=f"{len(item['image'])}",
                    remedy="Write all modalities into the file, in this order.",
                )
            )

    def _announce(self, prepared: Sequence[Mapping[str, Any]], *, num_voxels: int) -> None:
        """Say once what is going to be needed, when the first case tells how large cases are."""
        if self._is_announced:
            return
        self._is_announced = True
        LOG.info(
            forecast(
                self.predictor.members,
                prepared,
                num_cases=self.num_cases,
                num_voxels=num_voxels,
                settings=self.settings,
            )
        )

    def _write_mask(self, case: Case, classes: np.ndarray, affine: np.ndarray) -> Path:
        values = classes_to_values(classes[None], values=tuple(self.labels.values()))[0].numpy()
        path = mask_path(self.folder, case.id)
        write_volume(path, values, affine=affine, dtype=values.dtype)
        return path

    def _uncertainty(self, opened: OpenCase) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        total = UncertaintySum(
            regions=self.regions, deciding_regions=self.models[0].deciding_regions
        )
        samples = self.predictor.samples(
            opened.prepared,
            num_samples=self.settings["uncertainty_samples"],
            seed=self.settings["seed"],
        )
        for sample in samples:
            total.add(sample)
        entropy, mutual_information = total.maps()
        return {"entropy": entropy, "mutual_information": mutual_information}, {
            "unit": "nat",
            "maps": list(total.channel_names),
            "volumes_ml": total.volumes_ml(voxel_volume_ml=voxel_volume_ml(opened.affine)),
        }

    def _has_seen(self, model: TrainedModel, case: Case) -> bool | None:
        """Whether `model` was trained on the patient; None where nobody knows."""
        has_seen = model.has_seen(case.subject)
        return has_seen if has_seen or self.subjects_known else None

    def _provenance(self, case: Case) -> dict[str, Any]:
        return {
            "models": [
                {
                    "name": model.name,
                    "digest": model.digest,
                    "seen_in_training": self._has_seen(model, case),
                }
                for model in self.models
            ],
            "settings": dict(self.settings),
            "versions": versions_of(PACKAGES),
            "device": self.device.type,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
