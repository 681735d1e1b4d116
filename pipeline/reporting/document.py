"""The report as one HTML file that is opened from disk and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.tables import Grid

HERE = Path(__file__).parent
NIIVUE = HERE / "vendor" / "niivue-0.69.0.umd.js"
NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
LICENCE = HERE / "vendor" / "NIIVUE_LICENSE"


@dataclass(frozen=True)
class Chart:
    """An SVG drawing, trusted, and what is said below it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class CaseView:
    """What the report holds of one case.

    Attributes:
        name: the case's id.
        grids: tables: volumes, scores, lesions.
        picture: PNG or WebP bytes with their type, such as "image/png"; None if there is none.
        alt: what the picture shows, for those who cannot see it.
        payload: of `pipeline.reporting.volumes.viewer_payload`.
    """

    name: str
    grids: Sequence[Grid]
    picture: tuple[str, bytes] | None
    alt: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """What the report says; the cases come one by one, in the order of `names`.

    Attributes:
        classes, errors: name and colour of each class but the background, and of missed and false.
        regions: class indices by name.
        sections after the cases: `settings` and `definitions`, as pairs of name and text.
    """

    title: str
    subtitle: str
    about: str
    names: Sequence[str]
    classes: Sequence[tuple[str, Sequence[int]]]
    errors: Sequence[tuple[str, Sequence[int]]]
    regions: Mapping[str, Sequence[int]]
    warnings: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    rule: str = ""
    charts: Sequence[Chart] = ()
    settings: Sequence[tuple[str, str]] = field(default=())
    definitions: Sequence[tuple[str, str]] = field(default=())


def html_parts(document: Document, cases: Iterable[CaseView]) -> Iterator[str]:
    """Yield the file piece by piece; no more than one case is in memory at a time."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    css, viewer, niivue = _resource("report.css"), _resource("viewer.js"), _niivue()
    numbers = {name: number for number, name in enumerate(document.names)}

    def linked(cell: str) -> str | Markup:
        number = numbers.get(cell)
        if number is None:
            return cell
        return Markup('<a href="#viewer" data-case="{}">{}</a>').format(number, cell)

    yield from environment.get_template("report.html.j2").generate(
        policy=_policy([niivue, viewer]),
        title=document.title,
        subtitle=document.subtitle,
        sections=_sections(document),
        warnings=document.warnings,
        grids=document.grids,
        rule=document.rule,
        charts=[Chart(Markup(chart.svg), chart.caption) for chart in document.charts],  # noqa: S704 - ours
        names=document.names,
        shown="cropped to the brain and in 256 grey levels",
        cases=map(_case, cases),
        settings=document.settings,
        definitions=document.definitions,
        about=document.about,
        licence=LICENCE.read_text(),
        linked=linked,
        summary=_json(_summary(document)),
        # Trusted: files of this package.
        css=Markup(css),  # noqa: S704
        viewer=Markup(viewer),  # noqa: S704
        niivue=Markup(niivue),  # noqa: S704
    )


def _case(case: CaseView) -> dict[str, Any]:
    picture = None
    if case.picture is not None:
        kind, content = case.picture
        picture = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {
        "name": case.name,
        "grids": case.grids,
        "picture": picture,
        "alt": case.alt,
        "payload": _json(case.payload),
    }


def _summary(document: Document) -> dict[str, Any]:
    def entries(named: Sequence[tuple[str, Sequence[int]]]) -> list[dict[str, Any]]:
        return [{"name": name, "rgb": [int(value) for value in rgb]} for name, rgb in named]

    return {
        "cases": [{"number": number} for number in range(len(document.names))],
        "classes": entries(document.classes),
        "errors": entries(document.errors),
        "regions": [
            {"name": name, "classes": np.asarray(classes).tolist()}
            for name, classes in document.regions.items()
        ],
    }


def _sections(document: Document) -> list[tuple[str, str]]:
    there = [
        ("scores", "Scores", document.grids),
        ("charts", "Figures", document.charts),
        ("cases", "Cases", True),
        ("settings", "Settings", document.settings),
        ("definitions", "Definitions", document.definitions),
    ]
    return [(anchor, name) for anchor, name, content in there if content]


def _json(content: object) -> Markup:
    """Return JSON that is safe within a script element, whatever the names in it are."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - nothing in it ends the element any more


def _policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: nothing is fetched, and no script runs but these."""
    allowed = " ".join(_digest(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src data: blob:; worker-src blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (HERE / "templates" / name).read_text()


def _niivue() -> str:
    content = NIIVUE.read_bytes()
    if hashlib.sha256(content).hexdigest() != NIIVUE_SHA256:
        raise RuntimeError(f"{NIIVUE.name} is not the file that this package was made with")
    return content.decode()
