"""Segmenting many cases into one folder: what is finished is skipped, what fails is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tqdm import tqdm

from pipeline.data.datalist import Case
from pipeline.errors import DataError, Problem, RunStopped, unwrapping
from pipeline.inference.memory import is_out_of_memory, memory_told
from pipeline.inference.records import finished_record, input_digests
from pipeline.inference.segmentation import Segmenter
from pipeline.inference.steps import OpenCase, Prediction
from pipeline.signals import StopRequest

LOG = logging.getLogger(__name__)
Record: TypeAlias = dict[str, Any]


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
    """Segment `cases` in their order, behind a progress bar.

    While one is in the network, the next one is read and prepared in a thread, and the files of the
    one before are written and verified in another. A case that cannot be used does not keep the
    others from being segmented: its problems are in the outcome.

    Raises:
        RunStopped: A signal asked for it; the case that was open is finished.
        ResourceError: A file could not be written, or memory ran out; what was finished counts.
    """
    session = _Session(cases, segmenter, stop)
    with session.reader, session.writer:
        try:
            for number in tqdm(range(len(cases)), desc="Segmenting", unit="case", disable=None):
                session.require_not_stopped()
                session.segment(number)
        finally:
            # Whatever ends it: a mask that is there counts only with its record.
            session.conclude()
    return session.outcome


class _Session:
    """At most three cases at a time: one is read, one in the network, one written."""

    def __init__(self, cases: Sequence[Case], segmenter: Segmenter, stop: StopRequest) -> None:
        self.cases = cases
        self.segmenter = segmenter
        self.stop = stop
        self.modalities = segmenter.models[0].header["modality"]
        self.outcome = Outcome()
        self.reader = ThreadPoolExecutor(max_workers=1)
        self.writer = ThreadPoolExecutor(max_workers=1)
        self._ahead: Future[Record | OpenCase] | None = None
        self._behind: tuple[Case, Future[Record]] | None = None

    def segment(self, number: int) -> None:
        """Bring a case to where only its files are missing, which the writer is given."""
        case = self.cases[number]
        try:
            with memory_told(case.id), unwrapping():
                found = self._predicted(number)
        except DataError as error:
            self.conclude()
            LOG.error("%s: not segmented: %s", case.id, error)
            self.outcome.problems += error.problems
            return
        was_open = self.stop.requested  # when the signal came: then it is finished
        self.conclude()
        if isinstance(found, dict):
            self.outcome.num_finished_before += 1
            self.outcome.records.append(found)
            return
        if not was_open:
            self.require_not_stopped()
        self._behind = case, self.writer.submit(self.segmenter.write, *found)
        if self.segmenter.writes_maps:
            self.conclude()  # such volumes are too large to lie beside the next pass

    def _predicted(self, number: int) -> Record | tuple[OpenCase, Prediction]:
        """Return what the networks say of a case, or its record where it is finished already."""
        opened = self._opened(number)
        if isinstance(opened, dict):
            return opened
        return opened.without_images(), self.segmenter.predict(opened)

    def _opened(self, number: int) -> Record | OpenCase:
        """Return a case ready for the network, and have the next one read from now on."""
        reading, self._ahead = self._ahead or self.reader.submit(self._open, number), None
        try:
            opened = reading.result()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            opened = None
        if opened is None:  # once more, now that no pass takes memory beside it
            opened = self._open(number)
        if number + 1 < len(self.cases) and not self.stop.requested:
            self._ahead = self.reader.submit(self._open, number + 1)
        return opened

    def _open(self, number: int) -> Record | OpenCase:
        case = self.cases[number]
        inputs = input_digests(case, self.modalities)
        record = finished_record(self.segmenter.folder, case.id, self.segmenter.origin(inputs))
        return self.segmenter.open(case, inputs=inputs) if record is None else record

    def conclude(self) -> None:
        """Wait for the files that are being written, and write the record."""
        if self._behind is None:
            return
        (case, writing), self._behind = self._behind, None
        with memory_told(case.id):
            record = writing.result()
            self.segmenter.conclude(record)
        volumes = ", ".join(f"{name} {ml:.2f} mL" for name, ml in record["volumes_ml"].items())
        LOG.info("%s: %s (%.1f s)", case.id, volumes, sum(record["seconds"].values()))
        self.outcome.records.append(record)

    def require_not_stopped(self) -> None:
        """Raise RunStopped if a signal has asked for it; what is written then is finished first."""
        if not self.stop.requested:
            return
        self.conclude()
        raise RunStopped(
            f"stopped by {self.stop.signal_name} after {len(self.outcome.records)} of "
            f"{len(self.cases)} cases, which are finished. Repeat the command to go on."
        )
