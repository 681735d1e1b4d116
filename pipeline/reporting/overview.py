"""What stands before the cases: their scores, worst first, and the figures of all together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from pipeline.data.datalist import DataList
from pipeline.errors import DataError
from pipeline.evaluation.calibration import calibration_bins
from pipeline.evaluation.pair_content import read_pair
from pipeline.evaluation.pairs import Selection, find_pairs
from pipeline.evaluation.report import Report, make_report
from pipeline.evaluation.scoring import check_pairs, default_num_workers, score_pairs
from pipeline.reporting.charts import distributions, reliability, training_curves
from pipeline.reporting.document import Chart
from pipeline.reporting.sources import Masked, Source

NUM_BINS = 15
SEED = 0  # of the bootstrap, as in `pipeline.evaluate`


def scored(
    source: Source, datalist: DataList, cases: Sequence[Masked]
) -> tuple[Report | None, tuple[Masked, ...]]:
    """Return the scores of the cases that have a reference, and all cases in the order to show.

    Those with a reference come first, the worst at the head.

    Raises:
        DataError: A mask or a reference cannot be used.
    """
    labelled = tuple(masked.case for masked in cases if masked.case.label is not None)
    if source.masks is None or not labelled:
        return None, tuple(cases)
    pairs = find_pairs(source.masks, labelled)
    num_workers = min(default_num_workers(), len(pairs))
    with _bar("Checking", len(pairs)) as on_case:
        check_pairs(pairs, labels=datalist.labels, num_workers=num_workers, on_case=on_case)
    with _bar("Scoring", len(pairs)) as on_case:
        results = score_pairs(
            pairs,
            labels=datalist.labels,
            regions=datalist.region_classes(),
            num_workers=num_workers,
            on_case=on_case,
        )
    report = make_report(
        results,
        predictions=source.name,
        datalist=datalist,
        selection=Selection(labelled, "those with a mask"),
        seed=SEED,
        empty_rules=False,
    )
    by_id = {masked.case.id: masked for masked in cases}
    first = tuple(by_id[result.case] for result in report.results)
    return report, (*first, *(masked for masked in cases if masked.case.label is None))


def calibration_chart(source: Source, datalist: DataList, cases: Sequence[Masked]) -> list[Chart]:
    """Return the reliability diagram of the cases that have probabilities; empty if none has."""
    labelled = tuple(masked.case for masked in cases if masked.case.label is not None)
    if source.masks is None or not labelled:
        return []
    pairs = [pair for pair in find_pairs(source.masks, labelled) if pair.probabilities is not None]
    if not pairs:
        return []
    bins = np.zeros((NUM_BINS, 3))
    with _bar("Calibration", len(pairs)) as on_case:
        for pair in pairs:
            content = read_pair(pair, labels=datalist.labels)
            if content.probabilities is None:  # it was there when the pairs were found
                raise DataError(f"{pair.case.id}: its probabilities are gone. Start again.")
            tumour = (content.prediction > 0) | (content.reference > 0)
            bins += calibration_bins(
                content.probabilities, content.reference, num_bins=NUM_BINS, mask=tumour
            )
            on_case()
    filled = bins[bins[:, 0] > 0]
    shares = [(confidence / n, right / n, int(n)) for n, confidence, right in filled]
    title = "How often the network is right against how sure it is"
    where = f"in voxels that are tumour in mask or reference; cases: {len(pairs)}"
    return [Chart(reliability(shares, title=title), f"{title}, {where}.")]


def charts_of(source: Source, report: Report | None) -> list[Chart]:
    """Return the figures of all cases' scores, and of the training."""
    charts = []
    if report is not None:
        for column, label, limits in (
            ("dice", "Dice", (0.0, 1.0)),
            ("hd95_mm", "HD95 in mm", None),
        ):
            scores = {
                region: [result.scores[f"{column}_{region}"] for result in report.results]
                for region in report.regions
            }
            title = f"{label} of each case, by region"
            svg = distributions(scores, label=label, title=title, limits=limits)
            caption = f"{title}: dots are cases; the line is the median, the bar the middle half."
            charts.append(Chart(svg, caption))
    if source.epochs:
        title = "Training loss and the validation's Dice over the epochs"
        charts.append(Chart(training_curves(source.epochs, title=title), f"{title}."))
    return charts


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[], object]]:
    with tqdm(total=total, desc=title, unit="case", disable=None) as bar:
        yield bar.update
