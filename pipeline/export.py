"""python -m pipeline.export RUN -o BUNDLE [--torchscript] [--onnx] [--half-precision] [--zip] ...

Write a trained model as a MONAI bundle, which runs wherever MONAI does, without this project. RUN
is the folder of a run or of a crossval, a checkpoint, or a bundle. The bundle gets its name only if
it segments a case as the model does, voxel for voxel, in an environment that does not have this
project.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import main_of, new_parser


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("export", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, checkpoint or bundle")
    parser.add_argument(
        "-o", "--output-dir", type=Path, required=True, metavar="BUNDLE", help="folder to make"
    )
    parser.add_argument("--torchscript", action="store_true", help="with models/model.ts")
    parser.add_argument("--onnx", action="store_true", help="with models/model.onnx")
    parser.add_argument(
        "--half-precision",
        action="store_true",
        help="round the weights to float16: half the size; what that changes is told",
    )
    parser.add_argument(
        "--notes",
        type=Path,
        metavar="FILE",
        help="Markdown about this model for its README.md: data, their licence, limits",
    )
    parser.add_argument("--zip", action="store_true", help="with BUNDLE.zip beside it")
    parser.add_argument(
        "--case",
        type=Path,
        metavar="FOLDER",
        help="compare on the case in this folder (default: a phantom)",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="let the bundle segment in windows of N voxels (default: the whole volume at once)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.5,
        metavar="O",
        help="share of a window that the next one covers (default: 0.5)",
    )
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Export as the command line says, and print what was proven."""
    from pipeline.data.files import require_writable

    require_writable(arguments.output_dir.parent)  # before the seconds that importing torch takes
    from pipeline.bundle.documents import read_notes
    from pipeline.bundle.export import export_bundle
    from pipeline.errors import unwrapping
    from pipeline.model.trained import load_model

    notes = None if arguments.notes is None else read_notes(arguments.notes)
    model = load_model(arguments.run)
    with unwrapping():
        verification = export_bundle(
            model,
            arguments.output_dir,
            window=arguments.window,
            overlap=arguments.overlap,
            formats=[name for name in ("torchscript", "onnx") if getattr(arguments, name)],
            half_precision=arguments.half_precision,
            notes=notes,
            archive=arguments.zip,
            case_folder=arguments.case,
            report=print,
        )
    print(
        f"{arguments.output_dir}: all {verification.num_voxels} voxels of {verification.case} are "
        f"as the model has them ({', '.join(verification.labels)}); its probabilities to "
        f"{verification.probability_difference:.1e}."
    )
    if verification.num_changed is not None:
        print(
            f"Half precision of the weights changed {verification.num_changed} of these "
            f"{verification.num_voxels} voxels."
        )
    for file, num_ties in verification.ties.items():
        print(f"{file}: the same classes; {num_ties} ties decided otherwise.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
