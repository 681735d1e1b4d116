"""The header of a data list: modalities, labels and regions, in our form or the Decathlon's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.data.datalist_fields import Findings, check_keys, is_integer, is_text, shown
from pipeline.data.naming import LABEL_NAMES, by_index, default_regions, label_names, modality_name

HEADER_KEYS = ("name", "modality", "labels", "regions")
# The Decathlon's and MONAI's own keys ("relase" is how the Decathlon spells it): not needed here.
IGNORED_KEYS = (
    "description",
    "licence",
    "license",
    "numTest",
    "numTraining",
    "reference",
    "relase",
    "release",
    "tensorImageSize",
)
CASE_KEYS = ("case", "subject", "fold", "labels", "seg", "label", "image")
MAX_LABEL_VALUE = 32767  # int16: the widest type that every reader of masks takes


@dataclass(frozen=True)
class Header:
    """What a list says about its dataset; `spellings` maps its label names to ours."""

    name: str
    modalities: tuple[str, ...]
    labels: dict[str, int]
    regions: dict[str, tuple[str, ...]]
    spellings: dict[str, str]


def read_header(document: dict[str, Any], *, default_name: str, findings: Findings) -> Header:
    """Return the header of `document`; what is wrong with it goes to the findings."""
    name = document.get("name", default_name)
    if not is_text(name):
        findings.wrong_type("name", name, expected="the dataset's name")
    modalities = _read_modalities(document, findings)
    written = _read_labels(document, findings)
    spellings = label_names(list(written))
    labels: dict[str, Any] = {spellings[text]: value for text, value in written.items()}
    if set(labels) == set(LABEL_NAMES) and _is_numbered(document["labels"]):
        # The Decathlon numbers oedema 1 and the core 2. The class index follows the name, not the
        # number, so that networks trained on BraTS and on the Decathlon mean the same by a class.
        labels = {label: labels[label] for label in LABEL_NAMES}
    _check_labels(labels, findings)
    regions = default_regions(list(labels))
    if "regions" in document:
        regions = _read_regions(document["regions"], labels, spellings, findings)
    return Header(str(name), modalities, labels, regions, spellings)


def read_override(value: Any, *, header: Header, where: str, findings: Findings) -> tuple[int, ...]:
    """Return the label values of a case: the header's, but for those that the case overrides."""
    labels: dict[str, Any] = dict(header.labels)
    if not isinstance(value, dict):
        findings.wrong_type(where, value, expected="an object: label name -> value in this mask")
        return tuple(labels.values())
    override: dict[str, Any] = value
    renamed = {header.spellings.get(key, key): item for key, item in override.items()}
    if len(renamed) < len(value):
        findings.wrong_type(where, value, expected="each label once")
    check_keys(renamed, known=labels, where=where, findings=findings)
    labels.update({key: item for key, item in renamed.items() if key in labels})
    _check_values(labels, where, findings)
    return tuple(labels.values())


def _read_modalities(document: dict[str, Any], findings: Findings) -> tuple[str, ...]:
    expected = 'the channels in order, for example ["flair", "t1", "t1ce", "t2"]'
    if "modality" not in document:
        findings.missing("modality", expected=expected)
        return ()
    value = document["modality"]
    names = by_index(value) if isinstance(value, dict) else value
    if not isinstance(names, list) or not names or not all(is_text(name) for name in names):
        findings.wrong_type("modality", value, expected=expected)
        return ()
    modalities = tuple(modality_name(name) for name in names)
    if len(set(modalities)) < len(modalities):
        findings.wrong_type("modality", value, expected="each modality once")
    if set(modalities) & set(CASE_KEYS):
        # A case would have two meanings for the same key.
        expected = f"names other than {', '.join(CASE_KEYS)}"
        findings.wrong_type("modality", value, expected=expected)
    return modalities


def _read_labels(document: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """Return the values by label name as written, of either form: {name: 1} or {"1": name}."""
    expected = 'an object such as {"background": 0, "oedema": 2}, or {"0": "background"}'
    if "labels" not in document:
        findings.missing("labels", expected=expected)
        return {}
    value = document["labels"]
    if not isinstance(value, dict) or not value:
        findings.wrong_type("labels", value, expected=expected)
        return {}
    if not _is_numbered(value):
        return value
    names = list(value.values())
    if not all(is_text(name) for name in names) or len(set(names)) < len(names):
        findings.wrong_type("labels", value, expected="a different name for each value")
        return {}
    return {name: int(key) for key, name in sorted(value.items(), key=lambda item: int(item[0]))}


def _is_numbered(labels: dict[str, Any]) -> bool:
    """Tell whether `labels` is the Decathlon's form, {"1": name}."""
    return all(key.isdecimal() and len(key) <= len(str(MAX_LABEL_VALUE)) for key in labels)


def _check_labels(labels: dict[str, Any], findings: Findings) -> None:
    if not labels:
        return  # reported already
    _check_values(labels, "labels", findings)
    if next(iter(labels)) != "background" or labels["background"] != 0:
        findings.add(
            "labels",
            kind="label-order",
            expected="background first, with the value 0",
            found=shown(labels),
            remedy="The position of a label is its class index, and class 0 is the background.",
        )
    if len(labels) < 2:
        findings.wrong_type("labels", labels, expected="a label besides the background")


def _check_values(labels: dict[str, Any], where: str, findings: Findings) -> None:
    for name, value in labels.items():
        if not is_text(name):
            findings.wrong_type(f"{where}.{name}", name, expected="a printable name")
        if not is_integer(value, maximum=MAX_LABEL_VALUE):
            expected = f"an integer from 0 to {MAX_LABEL_VALUE}"
            findings.wrong_type(f"{where}.{name}", value, expected=expected)
    values = [value for value in labels.values() if isinstance(value, int)]
    if len(set(values)) < len(values):
        findings.wrong_type(where, labels, expected="a different value for each label")


def _read_regions(
    value: Any, labels: Iterable[str], spellings: dict[str, str], findings: Findings
) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not value:
        findings.wrong_type("regions", value, expected='an object such as {"WT": ["oedema"]}')
        return {}
    foreground = list(labels)[1:]
    regions = {}
    for region, names in value.items():
        names = [spellings.get(name, name) for name in names] if _is_list_of_text(names) else []
        if not is_text(region):
            findings.wrong_type("regions", region, expected="a printable name")
        if not names or len(set(names)) < len(names) or not set(names) <= set(foreground):
            findings.wrong_type(
                f"regions.{region}",
                value[region],
                expected=f"a list of labels, each once, of {', '.join(foreground)}",
            )
        regions[region] = tuple(names)
    return regions


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(is_text(item) for item in value)
