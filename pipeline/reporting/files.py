"""The files beside a report, case by case: pictures, an animation, meshes, a table of lesions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pipeline.data.files import replace_file, require_writable
from pipeline.data.slices import Scan
from pipeline.errors import ResourceError, SettingsError
from pipeline.reporting.animation import animation
from pipeline.reporting.build import Contents
from pipeline.reporting.case_content import CaseContent
from pipeline.reporting.document import CaseView
from pipeline.reporting.figures import overview_figure, panel_figure
from pipeline.reporting.lesion_table import LesionRow, is_lesion_csv, lesion_csv, lesion_rows
from pipeline.reporting.meshes import mesh_files, mesh_names
from pipeline.reporting.volumes import WEBP_QUALITY

OVERVIEW, PANEL, PLANES, LESIONS = "overview.png", "slices.png", "planes.gif", "lesions.csv"
TRUTH_MESHES = "truth"

# Of a case of 240 x 240 x 155 voxels, with and without files: 100 of them, measured on two cores.
SECONDS_PER_CASE = {True: 6.1, False: 3.0}
HTML_BYTES_PER_CASE = 1.6e6
FILE_BYTES_PER_CASE = 17e6
MEMORY_BYTES = 2.0e9


def require_own_folder(folder: Path) -> None:
    """Refuse a folder that no report made: files of the same names would be replaced in it.

    Raises:
        SettingsError: Something is in it, and not the table that each report begins with.
        ResourceError: It cannot be told what is in it.
    """
    if not folder.is_dir() or is_lesion_csv(folder / LESIONS):
        return
    try:
        found = min((path.name for path in folder.iterdir()), default=None)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be read: {error.strerror}.") from error
    if found is not None:
        raise SettingsError(
            f"{folder}: expected no such folder, an empty one, or that of an earlier report (with "
            f"its {LESIONS}) for the files beside the report; found {found}. Choose another name "
            "for -o, move the folder away, or leave the files out with --html-only."
        )


class CaseFiles:
    """Makes the picture of each case, and its files where there is a folder for them.

    The folder is made with an empty table of lesions, by which a later report knows it as one of
    its own (`require_own_folder`), even if this one is killed.
    """

    def __init__(self, contents: Contents, *, folder: Path | None) -> None:
        self.contents = contents
        self.folder = folder
        self.lesions: list[LesionRow] = []
        if self.folder is not None:
            require_writable(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / LESIONS).exists():
                self.finish()

    def of_case(self, content: CaseContent) -> tuple[tuple[str, bytes] | None, str]:
        """Write the files of a case; return its picture for the report, and what it shows."""
        name, masks = content.case.id, content.masks
        scan = Scan.of(
            next(iter(content.images.values())),
            affine=content.affine,
            prediction=masks["prediction"],
            truth=masks.get("truth"),
        )
        names = list(self.contents.labels)
        overview = overview_figure(scan, name=name, class_names=names)
        if self.folder is not None:
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            replace_file(folder / OVERVIEW, overview)
            replace_file(folder / PANEL, panel_figure(scan, name=name, class_names=names))
            replace_file(folder / PLANES, animation(scan))
            self._write_meshes(content, folder)
            self.lesions += lesion_rows(
                name,
                regions=self.contents.regions,
                affine=content.affine,
                truth=masks.get("truth"),
                prediction=masks["prediction"],
            )
        return ("image/webp", _smaller(overview)), _described(content)

    def _write_meshes(self, content: CaseContent, folder: Path) -> None:
        places = {"prediction": folder, "truth": folder / TRUTH_MESHES}
        for source, classes in content.masks.items():
            places[source].mkdir(exist_ok=True)
            written = mesh_files(
                classes,
                affine=content.affine,
                regions=self.contents.regions,
                folder=places[source],
            )
            # Of a region that an earlier mask had. Other meshes are not ours.
            for path in (places[source] / name for name in mesh_names(self.contents.regions)):
                if path not in (*written.stl.values(), written.glb):
                    path.unlink(missing_ok=True)

    def counted(self, cases: Iterator[CaseView]) -> Iterator[CaseView]:
        """Yield `cases` behind a progress bar."""
        total = len(self.contents.cases)
        return iter(tqdm(cases, total=total, desc="Reporting", unit="case", disable=None))

    def finish(self) -> None:
        """Write the table of all cases' lesions."""
        if self.folder is not None:
            replace_file(self.folder / LESIONS, lesion_csv(self.lesions))


def _smaller(png: bytes) -> bytes:
    """Return a picture as WebP, for the report itself: a third of the size."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(stream, "WEBP", quality=WEBP_QUALITY, method=4)
    return stream.getvalue()


def announce(contents: Contents, *, path: Path, folder: Path | None) -> str:
    """Return in words what is going to be made, and what it takes."""
    num_cases = len(contents.cases)
    if num_cases == 0:
        return f"No cases: {path.name} will hold the run's settings and curves."
    minutes = num_cases * SECONDS_PER_CASE[folder is not None] / 60
    disk = num_cases * (HTML_BYTES_PER_CASE + (FILE_BYTES_PER_CASE if folder is not None else 0))
    return (
        f"{num_cases} cases: about {minutes:.1f} min for cases of full size, up to "
        f"{MEMORY_BYTES / 1e9:.0f} GB of memory, about {disk / 1e6:.0f} MB of disk"
    )


def _described(content: CaseContent) -> str:
    """Return what the picture of a case shows, for those who cannot see it."""
    predicted = (content.masks["prediction"] > 0).sum() * content.voxel_ml
    said = f"Three planes through the largest section; predicted tumour of {predicted:.1f} mL"
    if "truth" in content.masks:
        said += f", true tumour of {(content.masks['truth'] > 0).sum() * content.voxel_ml:.1f} mL"
    return f"{said}."
