"""python -m pipeline VERB ...: lists the verbs, or runs one (also as brain-tumour-segmentation)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "phantom": "make a synthetic cohort of four-modality brain MRI with gliomas",
    "make_datalist": "find the cases in a folder and write the data list",
    "check": "look for every fault in the cases of a data list",
    "train": "train and validate the network",
    "crossval": "train and predict each fold in turn, score all, and make an ensemble",
    "infer": "segment cases with one or several trained networks",
    "evaluate": "score masks against references, or two sets of masks against each other",
    "report": "show scores, curves and every case in one HTML file, with pictures and meshes",
    "export": "make a MONAI bundle of a run, proven to give the same masks",
}


def usage() -> str:
    """Return the list of verbs."""
    lines = [f"  {name:<14} {what}" for name, what in VERBS.items()]
    return "\n".join(
        ["usage: python -m pipeline VERB ...  (python -m pipeline.VERB --help)", "", *lines]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` begins with; without one, list them."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"{verb}: there is no such verb\n{usage()}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"pipeline.{verb}").main(rest))


if __name__ == "__main__":
    sys.exit(main())
