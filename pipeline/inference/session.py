"""Segmenting many cases into one folder: what is finished is skipped, what fails is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from pipeline.data.datalist import Case
from pipeline.errors import DataError, Problem, RunStopped, unwrapping
from pipeline.inference.memory import memory_told
from pipeline.inference.records import finished_record, input_digests
from pipeline.inference.segmentation import Segmenter
from pipeline.signals import StopRequest

LOG = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The records of the cases that have a mask, how many had it before, and what went wrong."""

    records: list[dict[str, Any]] = field(default_factory=list)
    num_finished_before: int = 0
    problems: list[Problem] = field(default_factory=list)


def announce(segmenter: Segmenter, cases: Sequence[Case]) -> None:
    """Say what is going to be done, before the first case is read."""
    names = ", ".join(model.name for model in segmenter.models)
    LOG.info(
        "%d cases with %s on %s; labels %s",
        len(cases),
        names,
        segmenter.device,
        ", ".join(f"{name} = {value}" for name, value in segmenter.labels.items()),
    )


def segment_cases(cases: Sequence[Case], *, segmenter: Segmenter, stop: StopRequest) -> Outcome:
    """Segment `cases` one after the other, behind a progress bar.

    A case that cannot be used does not keep the others from being segmented: its problems are in
    the outcome.

    Raises:
        RunStopped: A signal asked for it; the case that was open is finished.
        ResourceError: A file could not be written, or memory ran out.
    """
    outcome = Outcome()
    modalities = segmenter.models[0].header["modality"]
    for case in tqdm(cases, desc="Segmenting", unit="case", disable=None):
        if stop.requested:
            raise RunStopped(
                f"stopped by {stop.signal_name} after {len(outcome.records)} of {len(cases)} "
                "cases, which are finished. Repeat the command to go on."
            )
        try:
            with memory_told(case.id), unwrapping():
                _segment_one(case, modalities, segmenter, outcome)
        except DataError as error:
            LOG.error("%s: not segmented: %s", case.id, error)
            outcome.problems += error.problems
    return outcome


def _segment_one(
    case: Case, modalities: Sequence[str], segmenter: Segmenter, outcome: Outcome
) -> None:
    inputs = input_digests(case, modalities)
    record = finished_record(segmenter.folder, case.id, segmenter.origin(inputs))
    if record is not None:
        outcome.num_finished_before += 1
    else:
        record = segmenter.segment(case, inputs=inputs)
        volumes = ", ".join(f"{name} {ml:.2f} mL" for name, ml in record["volumes_ml"].items())
        LOG.info("%s: %s (%.1f s)", case.id, volumes, sum(record["seconds"].values()))
    outcome.records.append(record)
