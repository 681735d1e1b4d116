"""python -m pipeline.report RUN_OR_MASKS [LIST] -o report.html [--fold N | --cases ID ...]

Make one HTML file that is opened from disk, without a network: scores with their intervals, curves
of training, and every case, worst first, in a viewer with three planes and 3D, with truth,
prediction and error. Beside it, in a folder of the same name: pictures, an animation, meshes of the
regions in the scanner's millimetres, and a table of lesions. A run's masks are those in its folder
`masks`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import console, main_of, new_parser

if TYPE_CHECKING:
    from pipeline.reporting.build import Contents
    from pipeline.reporting.sources import Source


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("report", __doc__)
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_MASKS", help="folder of a run or masks"
    )
    parser.add_argument(
        "list", type=Path, nargs="?", metavar="LIST", help="the data list that the masks are of"
    )
    parser.add_argument(
        "--allow-outside-root",
        action="store_true",
        help="accept files outside the folder of the list",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the report, an .html file"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--fold", type=int, metavar="N", help="only this fold's validation cases")
    chosen.add_argument("--cases", nargs="+", default=[], metavar="ID", help="only these cases")
    parser.add_argument(
        "--html-only", action="store_true", help="no pictures, animations, meshes and tables beside"
    )
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Score what has a reference, then write the report and the files beside it."""
    from pipeline.data.files import require_writable
    from pipeline.errors import SettingsError
    from pipeline.reporting.build import case_views, document_of, write_html
    from pipeline.reporting.files import CaseFiles, announce, require_own_folder
    from pipeline.reporting.sources import find_source

    path = arguments.output
    if path.suffix.lower() != ".html" or path.is_dir():
        raise SettingsError(f"-o {path}: expected the name of an .html file.")
    require_writable(path.parent)
    source = find_source(arguments.source)
    # Without masks there is nothing to put into it.
    folder = None if arguments.html_only or source.masks is None else path.with_suffix("")
    if folder is not None:
        require_own_folder(folder)
    contents = _contents(source, arguments)
    screen = console()
    screen.print(announce(contents, path=path, folder=folder), markup=False)
    files = CaseFiles(contents, folder=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = write_html(
        path, document_of(contents), files.counted(case_views(contents, each=files.of_case))
    )
    files.finish()
    screen.print(f"Report: {path} ({num_bytes / 1e6:.1f} MB): open it in a browser.", markup=False)
    if folder is not None:
        screen.print(f"Files:  {folder}", markup=False)


def _contents(source: Source, arguments: argparse.Namespace) -> Contents:
    from pipeline.data.checking import check_visibly
    from pipeline.data.datalist import read_datalist
    from pipeline.errors import SettingsError
    from pipeline.reporting.build import Contents
    from pipeline.reporting.overview import calibration_chart, charts_of, scored
    from pipeline.reporting.sources import cases_of

    if source.masks is None:
        charts, warnings = charts_of(source, None), [source.without_cases]
        return Contents(source, "", (), {}, {}, (), None, charts, warnings, ())
    if arguments.list is None:
        raise SettingsError(f"{source.name}: masks need the data list (LIST) they are of.")
    datalist = read_datalist(arguments.list, allow_outside_root=arguments.allow_outside_root)
    cases = cases_of(source, datalist, fold=arguments.fold, ids=arguments.cases)
    shown = tuple(masked.case for masked in cases)
    checked = dataclasses.replace(datalist, training=shown, validation=(), testing=())
    # Errors too are told and no more: what cannot be read cannot be scored or shown either.
    problems = check_visibly(checked, border_crop=None, mask_nonfinite=True)
    report, ordered = scored(source, datalist, cases)
    return Contents(
        source,
        list_name=datalist.path.name,
        modalities=datalist.modalities,
        labels=datalist.labels,
        regions=datalist.region_classes(),
        cases=ordered,
        report=report,
        charts=charts_of(source, report) + calibration_chart(source, datalist, cases),
        warnings=(),
        problems=problems,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
