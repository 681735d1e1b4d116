"""Make a cohort of phantoms: brain MRI with gliomas, computed from tissue properties.

    python -m pipeline.phantom phantoms --cases 10
    python -m pipeline.phantom phantoms --cases 10 --spacing 2

Each case is <case>/<case>_{flair,t1,t1ce,t2,seg}.nii.gz, named, oriented and labelled as in BraTS.
The same arguments make the same files, and a case does not depend on how many there are: repeat the
command with a larger --cases to go on. These are no patients: use them to try things out, not to
judge a network.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import console, main_of, new_parser

if TYPE_CHECKING:
    from pipeline.data.phantom import Cohort

BRATS_BOX_MM = (240, 240, 155)
DEFAULT_FOLDS = 5  # of make_datalist, which needs a case for each


def parser() -> argparse.ArgumentParser:
    """Return the verb's options."""
    options = new_parser("phantom", __doc__)
    options.add_argument("out", type=Path, metavar="OUT", help="folder of the cohort")
    options.add_argument("--cases", type=int, default=10, metavar="N", help="default: 10")
    options.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="voxels; default: as many as fill BraTS's box of 240 x 240 x 155 mm",
    )
    options.add_argument(
        "--spacing", type=float, default=1.0, metavar="MM", help="size of a voxel; default: 1"
    )
    options.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    options.add_argument(
        "--workers", type=int, metavar="N", help="processes; default: one for each processor"
    )
    return options


def work(arguments: argparse.Namespace) -> None:
    """Say what is needed, make what is missing, say where it is and what comes next."""
    from rich.progress import Progress

    from pipeline.data.phantom import Cohort, write_cohort

    x, y, z = arguments.shape or _box_shape(arguments.spacing)
    cohort = Cohort(arguments.out, arguments.cases, (x, y, z), arguments.spacing, arguments.seed)
    num_workers = (os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    _announce(cohort, num_workers)
    with Progress(console=console()) as bar:
        task = bar.add_task("cases", total=cohort.num_cases)
        write_cohort(
            cohort.folder,
            num_cases=cohort.num_cases,
            shape=cohort.shape,
            spacing_mm=cohort.spacing_mm,
            seed=cohort.seed,
            num_workers=num_workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _conclude(cohort)


def _box_shape(spacing_mm: float) -> tuple[int, int, int]:
    """Return as many voxels as fill BraTS's box; a spacing that cannot be is judged later."""
    x, y, z = (math.ceil(size / spacing_mm) if spacing_mm > 0 else size for size in BRATS_BOX_MM)
    return (x, y, z)


def _announce(cohort: Cohort, num_workers: int) -> None:
    from pipeline.data.phantom import Needs

    needs = Needs.of(cohort, num_workers=num_workers)
    size = " x ".join(map(str, cohort.shape))
    console().print(
        f"{cohort.num_cases} cases of {size} voxels at {cohort.spacing_mm:g} mm in "
        f"{cohort.folder}, {needs.num_cases} of them to be made",
        markup=False,
    )
    if needs.num_cases:
        console().print(
            f"about {needs.disk_bytes / 1e6:.1f} MB of disk and {max(1.0, needs.seconds):.0f} s, "
            f"with {needs.num_processes} processes of {needs.memory_bytes / 2**30:.1f} GiB memory"
        )


def _conclude(cohort: Cohort) -> None:
    from pipeline.data.phantom import MANIFEST

    datalist = cohort.folder / "datalist.json"
    command = ["python", "-m", "pipeline.make_datalist", str(cohort.folder), "-o", str(datalist)]
    if cohort.num_cases < DEFAULT_FOLDS:
        command += ["--folds", str(cohort.num_cases)]
    console().print(
        f"cases:    {cohort.case_folder(0)} ... {cohort.case_folder(cohort.num_cases - 1).name}\n"
        f"settings: {cohort.folder / MANIFEST}\n"
        f"next:     {shlex.join(command)}",
        markup=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return the exit code."""
    return main_of(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
