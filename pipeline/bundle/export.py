"""Writes a bundle: into a temporary folder, through the gate, and only then under its name."""

from __future__ import annotations

import glob
import io
import logging
import secrets
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.bundle.components import Config
from pipeline.bundle.contents import bundle_files
from pipeline.bundle.gate import Verification, verify_bundle
from pipeline.bundle.weights import rounded
from pipeline.data.files import replace_file
from pipeline.data.lock import LOCK_NAME, locked_folder
from pipeline.errors import ResourceError, SettingsError
from pipeline.model.trained import TrainedModel

LOG = logging.getLogger(__name__)
EARLIEST = (1980, 1, 1, 0, 0, 0)  # what zip can say; the same for every export
FILE_MODE = 0o644 << 16


def export_bundle(
    model: TrainedModel,
    target: Path,
    *,
    window: int | None = None,
    overlap: float = 0.5,
    formats: Sequence[str] = (),
    half_precision: bool = False,
    notes: str | None = None,
    archive: bool = False,
    case_folder: Path | None = None,
    report: Callable[[str], None] = LOG.info,
) -> Verification:
    """Write the bundle of `model` to `target`, if it is proven to be equal to it.

    Args:
        model: what to export.
        target: a folder that does not exist yet.
        window: edge of the windows in voxels; None for what the model says, else for the whole
            volume in one pass.
        overlap: share of a window that the next one covers.
        formats: `torchscript` (models/model.ts), `onnx` (models/model.onnx).
        half_precision: round the weights to float16 first, and store them so; networks compute in
            float32 as ever.
        notes: Markdown for the model card.
        archive: with `target`.zip beside it, which has the folder in it.
        case_folder: a case to compare on; a phantom otherwise.
        report: is told what is being done.

    Raises:
        SettingsError: `target` or its zip exists, or a format or setting is not possible.
        DataError: the bundle differs from the model, or half precision cannot hold a weight;
            nothing is left of it.
        ResourceError: something could not be written; nothing is left of it.
    """
    zipped = target.with_name(f"{target.name}.zip")
    for path in (target, zipped) if archive else (target,):
        if path.exists() or path.is_symlink():
            raise SettingsError(f"{path}: exists already. Choose another name, or remove it.")
    inferer = _inferer(model, window=window, overlap=overlap)
    report("Collecting files")
    unrounded = model if half_precision else None
    model = rounded(model) if half_precision else model
    files = bundle_files(
        model, inferer=inferer, formats=formats, half_precision=half_precision, notes=notes
    )
    # Both in one folder beside the target, so that they get their names without being copied.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    folder, packed = temporary / target.name, temporary / zipped.name
    try:
        _sweep(target)
        with locked_folder(temporary):
            _write(folder, files)
            report("Comparing with the model in an environment without this project")
            verification = verify_bundle(
                folder, model, inferer=inferer, case_folder=case_folder, unrounded=unrounded
            )
            if archive:
                replace_file(packed, _zipped(files, root=target.name))
            folder.rename(target)
            if archive:
                packed.rename(zipped)
    except OSError as error:
        raise ResourceError(
            f"{error.filename or target}: cannot be written ({error.strerror}). Choose another "
            f"place, or free space."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return verification


def _sweep(target: Path) -> None:
    """Remove what exports to `target` left that were killed; one that is at work holds its lock."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        if left.is_symlink() or not (left / LOCK_NAME).is_file():
            continue
        with suppress(ResourceError), locked_folder(left):
            shutil.rmtree(left)


def _inferer(model: TrainedModel, *, window: int | None, overlap: float) -> Config:
    if window is not None and window < 1:
        raise SettingsError(f"--window {window}: expected at least 1 voxel")
    if not 0 <= overlap < 1:
        raise SettingsError(f"--overlap {overlap}: expected a share from 0 to less than 1")
    divisor = model.preprocessing["divisor"]
    own = model.settings["inference"]["window"]
    return {
        "window": own if window is None and own != "auto" else window,
        "overlap": overlap,
        "flips": model.settings["inference"]["flips"],
        "divisor": divisor,
        "content_only": True,
    }


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def _zipped(files: dict[str, bytes], *, root: str) -> bytes:
    """Return a zip of one folder `root`, as MONAI unpacks it; the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"{root}/{name}", EARLIEST)
            entry.external_attr = FILE_MODE
            packed.writestr(entry, content)
    return buffer.getvalue()
