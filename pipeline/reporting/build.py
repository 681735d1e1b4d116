"""From a source and a data list to the report's file, case by case, worst first."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.colours import CLASS_COLOURS, ERROR_COLOURS
from pipeline.errors import Problem, ResourceError
from pipeline.evaluation.definitions import STATED_RULE
from pipeline.evaluation.report import Report, definitions, warnings_of
from pipeline.evaluation.tables import Grid, result_grids, worst_grid
from pipeline.reporting.case_content import CaseContent, facts_of, read_case
from pipeline.reporting.document import CaseView, Chart, Document, html_parts
from pipeline.reporting.sources import Masked, Source
from pipeline.reporting.volumes import viewer_payload
from pipeline.versions import versions_of


@dataclass(frozen=True)
class Contents:
    """Everything that a report is made of.

    Attributes:
        source: a run or masks.
        list_name: of the data list that the masks are of; empty for a run alone.
        modalities, labels, regions: of that list; regions are class indices by name.
        cases: in the order in which they are shown.
        report: scores of those that have a truth; None where none has.
        charts: figures of the overview.
        warnings: what keeps the numbers from being taken at face value.
        problems: what the check of the cases found.
    """

    source: Source
    list_name: str
    modalities: Sequence[str]
    labels: Mapping[str, int]
    regions: Mapping[str, tuple[int, ...]]
    cases: Sequence[Masked]
    report: Report | None
    charts: Sequence[Chart]
    warnings: Sequence[str]
    problems: Sequence[Problem]


def document_of(contents: Contents) -> Document:
    """Return all of the report but its cases."""
    report = contents.report
    names = [masked.case.id for masked in contents.cases]
    software = ", ".join(f"{name} {version}" for name, version in versions_of(("numpy",)).items())
    return Document(
        title=f"Brain-tumour segmentation: {contents.source.name}",
        subtitle=_subtitle(contents),
        about=f"Made by {software}. It holds all that it shows and fetches nothing.",
        names=names,
        classes=[
            (name, CLASS_COLOURS[index]) for index, name in enumerate(contents.labels) if index
        ],
        errors=list(ERROR_COLOURS.items()),
        regions=contents.regions,
        warnings=[*(warnings_of(report.results) if report else []), *contents.warnings],
        grids=[
            *([*result_grids(report), worst_grid(report)] if report else []),
            *([_check_grid(contents.problems)] if contents.problems else []),
        ],
        rule=STATED_RULE if report else "",
        charts=contents.charts,
        settings=list(_flat(contents.source.settings)),
        definitions=list(definitions().items()) if report else [],
    )


def case_views(
    contents: Contents, *, each: Callable[[CaseContent], tuple[tuple[str, bytes] | None, str]]
) -> Iterator[CaseView]:
    """Yield what is shown of each case; `each` makes its files, and its picture with its words."""
    scored = contents.report.results if contents.report else ()
    results = {result.case: result for result in scored}
    for masked in contents.cases:
        content = read_case(
            masked,
            modalities=contents.modalities,
            label_values=tuple(contents.labels.values()),
            result=results.get(masked.case.id),
        )
        picture, alt = each(content)
        yield CaseView(
            name=masked.case.id,
            grids=[facts_of(content, contents.regions)],
            picture=picture,
            alt=alt,
            payload=viewer_payload(
                images=content.images,
                masks=content.masks,
                maps=content.maps,
                affine=content.affine,
            ),
        )


def write_html(path: Path, document: Document, cases: Iterator[CaseView]) -> int:
    """Write the report to `path`, whole or not at all; return its size in bytes.

    Raises:
        ResourceError: It cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp.{path.name}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            for part in html_parts(document, cases):
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(
            f"{path.name}: cannot be written: {error.strerror}. Choose another place, or free some "
            "space."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def _check_grid(problems: Sequence[Problem]) -> Grid:
    rows: list[tuple[str, ...]] = [
        (
            problem.case,
            problem.file,
            problem.severity,
            f"{problem.kind}: expected {problem.expected}; found {problem.found}",
        )
        for problem in problems
    ]
    return Grid("What the check of the cases found", ("case", "file", "severity", "what"), rows)


def _subtitle(contents: Contents) -> str:
    if not contents.cases:
        return "a run, without its masks"
    what = f"{len(contents.cases)} cases of {contents.list_name}"
    if contents.report is not None:
        return f"{what}; {len(contents.report.results)} of them with a reference"
    return f"{what}; without references"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
