"""One case of a data list, and how its entry is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.datalist_fields import (
    Findings,
    PathRule,
    check_keys,
    is_integer,
    is_text,
    shown,
)
from pipeline.data.datalist_header import CASE_KEYS, Header, read_override
from pipeline.data.naming import CASE_ID, case_id_of, modality_name, subject_of

MAX_FOLD = 9999


@dataclass(frozen=True)
class Case:
    """One examination of one subject.

    `images` are absolute paths, one a modality in the header's order, or a single 4D file with the
    modalities in that order. `label_values` are the voxel values of this case's mask; the position
    is the class index. `fold` is None where the list gives none.
    """

    id: str
    subject: str
    images: tuple[Path, ...]
    label: Path | None
    fold: int | None
    label_values: tuple[int, ...]


class CaseReader:
    """Reads the cases of all sections, and remembers which ids it has seen where."""

    def __init__(self, header: Header, *, rule: PathRule, findings: Findings) -> None:
        self.header = header
        self.rule = rule
        self.findings = findings
        self._place_of_id: dict[str, str] = {}

    def read_section(self, key: str, entries: Any) -> list[Case]:
        """Return the cases of the section `key`, to be used only if the findings stay empty."""
        if not isinstance(entries, list):
            self.findings.wrong_type(key, entries, expected="a list of cases")
            return []
        cases = []
        for index, entry in enumerate(entries):
            self.findings.case = where = f"{key}[{index}]"
            case = self._read_case(entry, where, label_needed=key == "training")
            cases += [case] if case else []
        return cases

    def _read_case(self, entry: Any, where: str, *, label_needed: bool) -> Case | None:
        if is_text(entry):  # the Decathlon's "test" section lists the images alone
            entry = {"image": entry}
        if not isinstance(entry, dict):
            self.findings.wrong_type(where, entry, expected="an object, or the path of an image")
            return None
        if is_text(entry.get("case")):
            self.findings.case = entry["case"]
        entry = self._with_our_modalities(entry, where)
        known = (*CASE_KEYS, *self.header.modalities)
        check_keys(entry, known=known, where=where, findings=self.findings)
        texts = self._image_texts(entry, where)
        case = self._id(entry, texts, where)
        images = self._images(texts, where)
        label = self._label(entry, where, needed=label_needed)
        if label in images:
            self._repeated(where)
        return Case(
            id=case or where,
            subject=self._subject(entry, case or where, where),
            images=images,
            label=label,
            fold=self._fold(entry, where),
            label_values=read_override(
                entry.get("labels", {}),
                header=self.header,
                where=f"{where}.labels",
                findings=self.findings,
            ),
        )

    def _with_our_modalities(self, entry: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the entry with ``t1gd`` renamed to the header's ``t1ce``, and so on."""
        renamed: dict[str, Any] = {}
        for key, value in entry.items():
            name = modality_name(key)
            name = name if name in self.header.modalities else key
            if name in renamed:
                self.findings.add(
                    f"{where}.{key}",
                    kind="repeated-key",
                    expected=f"one file for the modality {name}",
                    found="two, under two spellings",
                    remedy="Remove the wrong one.",
                )
            renamed[name] = value
        return renamed

    def _image_texts(self, entry: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the value of each image, by its key; empty where the entry has none."""
        named = {name: entry[name] for name in self.header.modalities if name in entry}
        if "image" not in entry:
            for name in self.header.modalities:
                if name not in named:
                    self.findings.missing(f"{where}.{name}", expected=f"the file of {name}")
            return named
        if named:
            self.findings.add(
                f"{where}.image",
                kind="repeated-key",
                expected="either image, or one key a modality",
                found=f"image and {', '.join(named)}",
                remedy="Remove one of the two forms.",
            )
        value = entry["image"]
        if not isinstance(value, list):
            return {"image": value}
        if len(value) not in (1, len(self.header.modalities)):
            self.findings.add(
                f"{where}.image",
                kind="wrong-number",
                expected=f"{len(self.header.modalities)} files, or one 4D file",
                found=f"{len(value)} files",
                remedy="List one file for each modality of the header, in its order.",
            )
        return {f"image[{index}]": item for index, item in enumerate(value)}

    def _images(self, texts: dict[str, Any], where: str) -> tuple[Path, ...]:
        paths = [
            self.rule.resolve(value, where=f"{where}.{key}", findings=self.findings)
            for key, value in texts.items()
        ]
        images = tuple(path for path in paths if path)
        if len(set(images)) < len(images):
            self._repeated(where)
        return images

    def _label(self, entry: dict[str, Any], where: str, *, needed: bool) -> Path | None:
        keys = [key for key in ("seg", "label") if key in entry]
        if len(keys) == 2:
            self.findings.add(
                f"{where}.label",
                kind="repeated-key",
                expected="either seg or label",
                found="both",
                remedy="Remove one of them.",
            )
        if not keys:
            if needed:
                self.findings.missing(f"{where}.seg", expected="the file of the mask")
            return None
        place = f"{where}.{keys[0]}"
        return self.rule.resolve(entry[keys[0]], where=place, findings=self.findings)

    def _id(self, entry: dict[str, Any], texts: dict[str, Any], where: str) -> str | None:
        """Return the valid, unique id of the case and report further faults under it."""
        names = [text for text in texts.values() if is_text(text)]
        case = entry.get("case", case_id_of(names) if names else None)
        if "case" not in entry and not names:
            return None  # the missing images are reported already
        place = f"{where}.case"
        if not isinstance(case, str) or not CASE_ID.fullmatch(case):
            self.findings.wrong_type(
                place, case, expected="letters, digits and _-.+@=() as the name of the case"
            )
            return None
        self.findings.case = case
        # Its files would overwrite each other on a disk that does not tell "A" from "a".
        other = self._place_of_id.setdefault(case.casefold(), place)
        if other != place:
            self.findings.add(
                place,
                kind="duplicate-case",
                expected="an id that no other case has",
                found=f"{shown(case)}, as at {other}",
                remedy="Remove one of them, or give it another id.",
            )
        return case

    def _subject(self, entry: dict[str, Any], case: str, where: str) -> str:
        subject = entry.get("subject", subject_of(case))
        if not is_text(subject):
            self.findings.wrong_type(f"{where}.subject", subject, expected="the subject's name")
        return str(subject)

    def _fold(self, entry: dict[str, Any], where: str) -> int | None:
        fold = entry.get("fold")
        if "fold" in entry and not is_integer(fold, maximum=MAX_FOLD):
            self.findings.wrong_type(f"{where}.fold", fold, expected="an integer from 0")
        return fold

    def _repeated(self, where: str) -> None:
        self.findings.add(
            where,
            kind="repeated-file",
            expected="another file for each modality and for the mask",
            found="the same file twice",
            remedy="Correct the path that was copied.",
        )
