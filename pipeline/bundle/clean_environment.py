"""An environment that has MONAI and all else that is installed here, but not this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import pipeline
from pipeline.bundle.problems import problem
from pipeline.errors import DataError

OWN_PACKAGES = ("pipeline", "transforms", "networks")
CARRIED_PACKAGES = ("transforms", "networks")
OWN_DISTRIBUTION = "brain_tumour_segmentation"
PATH_FILES = (".pth", ".egg-link")
NUM_SHOWN_LINES = 30
PROBE = """
import importlib.util, json
specs = {name: importlib.util.find_spec(name) for name in ("pipeline", "transforms", "networks")}
print(json.dumps({name: spec and spec.origin for name, spec in specs.items()}))
"""


class CleanEnvironment:
    """A Python in `folder`, whose packages are links to those of the Python that is running.

    Args:
        folder: does not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
        self.python = folder / "bin" / "python"
        own = next(folder.glob("lib/python*/site-packages"))
        for entry in _installed():
            if not (own / entry.name).exists() and not _is_ours(entry):
                (own / entry.name).symlink_to(entry)

    def run(self, arguments: Sequence[str], *, folder: Path, time_limit_s: float) -> str:
        """Run this Python in `folder` and return what it printed, errors included.

        It gets no variable that says where Python finds modules, leaves no caches behind, and uses
        as many threads as torch does here: other sums could round otherwise.

        Raises:
            DataError: it failed, or took longer than `time_limit_s`; with its last lines.
        """
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        environment |= {
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        try:
            done = subprocess.run(  # noqa: S603 - our own command line, without a shell
                [str(self.python), *arguments],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=time_limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _failure(arguments, f"nothing after {time_limit_s:g} s", error.stdout) from error
        if done.returncode != 0:
            raise _failure(arguments, f"exit code {done.returncode}", done.stdout)
        return done.stdout

    def require_clean(self, bundle: Path) -> None:
        """Refuse an environment that would prove nothing.

        Raises:
            DataError: this project can be imported in it, or `transforms` and `networks` would not
                come from the folder `bundle`.
        """
        printed = self.run(["-c", PROBE], folder=bundle, time_limit_s=600)
        origins = json.loads(printed.splitlines()[-1])
        expected = {name: str(bundle.resolve() / name) for name in CARRIED_PACKAGES}
        found = {name: origins[name] and str(Path(origins[name]).parent) for name in origins}
        if found != {"pipeline": None, **expected}:
            raise problem(
                "environment",
                expected="transforms and networks of the bundle, and no pipeline",
                found=str(found),
                remedy="Install this project in an environment of its own.",
            )


def _installed() -> Iterator[Path]:
    """Yield what is installed for the running Python, the first of a name first."""
    for folder in map(Path, sys.path):
        if folder.name in ("site-packages", "dist-packages") and folder.is_dir():
            yield from sorted(folder.iterdir())


def _is_ours(entry: Path) -> bool:
    """Whether an entry of site-packages belongs to this project, or leads to its source tree."""
    name = entry.name.lower().replace("-", "_")
    if entry.name in OWN_PACKAGES or OWN_DISTRIBUTION in name:
        return True
    source_tree = str(Path(pipeline.__file__).resolve().parents[1])
    return entry.suffix in PATH_FILES and source_tree in entry.read_text(errors="replace")


def _failure(arguments: Sequence[str], found: str, output: str | bytes | None) -> DataError:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    shown = "\n".join(text.splitlines()[-NUM_SHOWN_LINES:])
    return problem(
        "run",
        expected=f"python {' '.join(arguments[:3])} to end well in a clean environment",
        found=f"{found}; it printed:\n{shown}\n",
        remedy="The last lines say why.",
    )
