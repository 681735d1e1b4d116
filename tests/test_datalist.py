"""Reading data lists in both forms, every refusal, and the split into folds."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.datalist import DataList, parse_datalist, read_datalist
from pipeline.data.json_files import json_bytes, read_json
from pipeline.errors import DataError

README = Path(__file__).parents[1] / "data_lists" / "README.md"
MODALITIES = ["flair", "t1", "t1ce", "t2"]
LABELS = {"background": 0, "necrotic_core": 1, "oedema": 2, "enhancing_tumour": 4}


def entry(case: str, **more: Any) -> dict[str, Any]:
    images = {name: f"{case}/{case}_{name}.nii.gz" for name in MODALITIES}
    return {"case": case, **images, "seg": f"{case}/{case}_seg.nii.gz", **more}


def document(**more: Any) -> dict[str, Any]:
    return {
        "name": "cohort",
        "modality": MODALITIES,
        "labels": LABELS,
        "training": [entry("A", fold=0), entry("B", fold=1), entry("C", fold=1)],
        **more,
    }


def read(folder: Path, value: Any, **options: Any) -> DataList:
    path = folder / "list.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_datalist(path, **options)


def kinds(folder: Path, value: Any) -> list[tuple[str, str]]:
    """The refusal's problems as (kind, place in the file)."""
    with pytest.raises(DataError, match=r"list\.json") as caught:
        read(folder, value)
    return [(problem.kind, problem.file.partition(" at ")[2]) for problem in caught.value.problems]


# Our form


def test_every_field_of_our_form(tmp_path: Path) -> None:
    case = entry("BraTS-GLI-00007-001", fold=2, labels={"enhancing_tumour": 3})
    plain = entry("B", subject="patient", fold=0)
    unlabelled = {key: value for key, value in entry("V").items() if key != "seg"}
    datalist = read(
        tmp_path,
        document(
            training=[case, plain], validation=[entry("W")], testing=[unlabelled], name="gliomas"
        ),
    )
    first, second = datalist.training
    assert (datalist.name, datalist.modalities) == ("gliomas", tuple(MODALITIES))
    assert first.id == "BraTS-GLI-00007-001"
    assert first.subject == "BraTS-GLI-00007"
    assert first.images[2] == tmp_path / first.id / f"{first.id}_t1ce.nii.gz"
    assert first.label == tmp_path / first.id / f"{first.id}_seg.nii.gz"
    assert (first.fold, first.label_values) == (2, (0, 1, 2, 3))
    assert (second.subject, second.label_values) == ("patient", (0, 1, 2, 4))
    assert [case.id for case in datalist.validation] == ["W"]
    assert [(case.id, case.label, case.fold) for case in datalist.testing] == [("V", None, None)]


def test_images_follow_the_header_not_the_order_of_keys(tmp_path: Path) -> None:
    shuffled = dict(reversed(entry("A").items()))
    datalist = read(tmp_path, document(modality=["t2", "flair", "t1", "t1ce"], training=[shuffled]))
    names = [path.name for path in datalist.training[0].images]
    assert names == ["A_t2.nii.gz", "A_flair.nii.gz", "A_t1.nii.gz", "A_t1ce.nii.gz"]


def test_other_spellings_of_a_modality_are_understood(tmp_path: Path) -> None:
    case = {"T2F": "a-t2f.nii", "t1n": "a-t1n.nii", "t1c": "a-t1c.nii", "t2w": "a-t2w.nii"}
    datalist = read(tmp_path, document(modality=["FLAIR", "T1", "T1Gd", "T2"], training=[],
                                       testing=[case]))  # fmt: skip
    assert datalist.modalities == tuple(MODALITIES)
    assert [path.name for path in datalist.testing[0].images] == list(case.values())
    assert datalist.testing[0].id == "a"


def test_header_is_plain_json_without_paths(tmp_path: Path) -> None:
    regions = {"WT": ["oedema", "necrotic_core"]}
    header = read(tmp_path, document(regions=regions)).header()
    assert json.loads(json.dumps(header)) == {
        "name": "cohort",
        "modality": MODALITIES,
        "labels": LABELS,
        "regions": regions,
    }


def test_region_classes_are_positions_not_values(tmp_path: Path) -> None:
    datalist = read(tmp_path, document())
    assert datalist.region_classes() == {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}


def test_a_label_that_is_not_of_brats_is_a_region_by_itself(tmp_path: Path) -> None:
    datalist = read(tmp_path, document(labels={**LABELS, "cavity": 5}))
    assert datalist.region_classes()["cavity"] == (4,)
    assert list(datalist.regions) == ["WT", "TC", "ET", "cavity"]
    other = read(tmp_path, document(labels={"background": 0, "liver": 1, "lesion": 7}))
    assert other.regions == {"liver": ("liver",), "lesion": ("lesion",)}


def test_labels_regions_and_overrides_may_be_spelt_otherwise(tmp_path: Path) -> None:
    labels = {"background": 0, "NCR": 1, "Peritumoral edema": 2, "ET": 4}
    datalist = read(
        tmp_path,
        document(labels=labels, regions={"WT": ["ET"]}, training=[entry("A", labels={"ET": 3})]),
    )
    assert datalist.labels == LABELS
    assert datalist.regions == {"WT": ("enhancing_tumour",)}
    assert datalist.training[0].label_values == (0, 1, 2, 3)


def test_labels_that_would_become_one_keep_their_own_names(tmp_path: Path) -> None:
    labels = {"background": 0, "necrosis": 1, "edema": 2, "non-enhancing": 3, "enhancing": 4}
    assert read(tmp_path, document(labels=labels)).labels == labels


def test_the_name_defaults_to_that_of_the_file(tmp_path: Path) -> None:
    value = document()
    del value["name"]
    assert read(tmp_path, value).name == "list"


# The form of MONAI and the Decathlon


def decathlon(**more: Any) -> dict[str, Any]:
    return {
        "name": "BRATS",
        "description": "Gliomas",
        "tensorImageSize": "4D",
        "relase": "2.0",
        "numTraining": 1,
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {
            "0": "background",
            "1": "edema",
            "2": "non-enhancing tumor",
            "3": "enhancing tumour",
        },
        "training": [
            {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
        ],
        "test": ["./imagesTs/BRATS_485.nii.gz"],
        **more,
    }


def test_the_decathlon_gets_the_class_order_of_brats(tmp_path: Path) -> None:
    datalist = read(tmp_path, decathlon())
    assert datalist.modalities == tuple(MODALITIES)
    assert list(datalist.labels.items()) == [
        ("background", 0),
        ("necrotic_core", 2),
        ("oedema", 1),
        ("enhancing_tumour", 3),
    ]
    case = datalist.training[0]
    assert (case.id, case.label_values) == ("BRATS_001", (0, 2, 1, 3))
    assert case.images == (tmp_path / "imagesTr" / "BRATS_001.nii.gz",)
    assert datalist.region_classes()["TC"] == (1, 3)
    assert [case.id for case in datalist.testing] == ["BRATS_485"]


def test_more_than_ten_numbered_labels_keep_the_order_of_their_numbers(tmp_path: Path) -> None:
    labels = {str(value): f"organ {value}" for value in range(11, 0, -1)}
    datalist = read(tmp_path, decathlon(labels={**labels, "0": "background"}))
    assert list(datalist.labels.values()) == list(range(12))
    assert list(datalist.labels)[10] == "organ 10"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ([f"X/BraTS2021_00003_{name}.nii.gz" for name in MODALITIES], "BraTS2021_00003"),
        ([f"imagesTr/BRATS_001_000{i}.nii.gz" for i in range(4)], "BRATS_001"),
        ([f"BraTS-GLI-00001-000-{name}.nii" for name in ("t2f", "t2w", "t1n", "t1c")],
         "BraTS-GLI-00001-000"),
        ([f"patient 7/{name}.nii.gz" for name in MODALITIES], "patient 7"),
        ([f"{name}/X01.nii.gz" for name in MODALITIES], "X01"),
        (["imagesTr/X01.nii.gz"], "X01"),
    ],
)  # fmt: skip
def test_the_id_of_a_case_that_has_none(tmp_path: Path, image: list[str], expected: str) -> None:
    datalist = read(tmp_path, decathlon(training=[{"image": image, "label": "y.nii", "fold": 0}]))
    assert datalist.training[0].id == expected
    assert len(datalist.training[0].images) == len(image)


def test_every_example_of_the_readme_is_read(tmp_path: Path) -> None:
    examples = re.findall(r"```json\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lists = [read(tmp_path, example) for example in examples]
    assert [len(one.training) + len(one.testing) for one in lists] == [2, 2, 1]
    assert lists[0].training[1].label_values == (0, 1, 2, 3)
    assert list(lists[2].regions) == ["WT", "TC", "ET", "resection_cavity"]


# Refusals of the file


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + json.dumps(document())).name == "cohort"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "name": "b"}', "key 'name' twice"),
        ('{"training": [{"case": "A", "case": "B"}]}', "key 'case' twice"),
        ('{"name": NaN}', "NaN, which is not JSON"),
        ('{"name": -Infinity}', "-Infinity, which is not JSON"),
        ('{"name": ', "json-syntax"),
        ("", "json-syntax"),
        ("[" * 100_000, "json-nesting"),
        ('{"name": ' + "9" * 5000 + "}", "json-syntax|wrong-type"),  # Python 3.10 has no limit
    ],
)
def test_json_that_is_not_strict_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(DataError, match="codec can't decode"):
        read_datalist(path)


def test_a_file_above_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("{" * 11)
    with pytest.raises(DataError, match="file-too-large: expected at most 10 bytes"):
        read_json(path, max_bytes=10)
    path.write_text('"12345678"')
    assert read_json(path, max_bytes=10) == "12345678"


def test_a_missing_file_and_a_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unreadable-file.*No such file"):
        read_datalist(tmp_path / "none.json")
    with pytest.raises(DataError, match="not-a-file"):
        read_datalist(tmp_path)
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)  # opening it would wait for a writer that never comes
    with pytest.raises(DataError, match="not-a-file"):
        read_datalist(pipe)


def test_json_bytes_are_utf8_and_end_in_a_newline() -> None:
    assert json_bytes({"name": "Zürich"}) == '{\n  "name": "Zürich"\n}\n'.encode()


# Refusals of the header


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": " "}, ("wrong-type", "name")),
        ({"modality": "flair"}, ("wrong-type", "modality")),
        ({"modality": []}, ("wrong-type", "modality")),
        ({"modality": {"1": "flair"}}, ("wrong-type", "modality")),
        ({"modality": ["flair", 1]}, ("wrong-type", "modality")),
        ({"modality": ["t1ce", "T1Gd"]}, ("wrong-type", "modality")),
        ({"modality": ["image"]}, ("wrong-type", "modality")),
        ({"labels": ["background"]}, ("wrong-type", "labels")),
        ({"labels": {}}, ("wrong-type", "labels")),
        ({"labels": {"background": 0}}, ("wrong-type", "labels")),
        ({"labels": {"0": "background", "1": 1}}, ("wrong-type", "labels")),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, ("wrong-type", "labels")),
        ({"labels": {"background": 0, "a": True}}, ("wrong-type", "labels.a")),
        ({"labels": {"background": 0, "a": -1}}, ("wrong-type", "labels.a")),
        ({"labels": {"background": 0, "a": 1.0}}, ("wrong-type", "labels.a")),
        ({"labels": {"background": 0, "a": 2**15}}, ("wrong-type", "labels.a")),
        ({"labels": {"background": 0, "": 1}}, ("wrong-type", "labels.")),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, ("wrong-type", "labels")),
        ({"labels": {"a": 1, "background": 0}}, ("label-order", "labels")),
        ({"labels": {"background": 1, "a": 2}}, ("label-order", "labels")),
        ({"regions": ["WT"]}, ("wrong-type", "regions")),
        ({"regions": {" ": ["oedema"]}}, ("wrong-type", "regions")),
        ({"regions": {"WT": "oedema"}}, ("wrong-type", "regions.WT")),
        ({"regions": {"WT": []}}, ("wrong-type", "regions.WT")),
        ({"regions": {"WT": [["oedema"]]}}, ("wrong-type", "regions.WT")),
        ({"regions": {"WT": ["oedema", "edema_"]}}, ("wrong-type", "regions.WT")),
        ({"regions": {"WT": ["oedema", "oedema"]}}, ("wrong-type", "regions.WT")),
        ({"regions": {"WT": ["background"]}}, ("wrong-type", "regions.WT")),
        ({"trainig": []}, ("unknown-key", "trainig")),
    ],
)
def test_a_wrong_header_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert kinds(tmp_path, document(**change)) == [expected]


def test_all_faults_of_a_header_are_reported_together(tmp_path: Path) -> None:
    assert kinds(tmp_path, {"name": 1, "colour": 2}) == [
        ("unknown-key", "colour"),
        ("wrong-type", "name"),
        ("missing-key", "modality"),
        ("missing-key", "labels"),
    ]


def test_a_list_that_is_not_an_object_or_has_no_case_is_refused(tmp_path: Path) -> None:
    assert kinds(tmp_path, [1]) == [("wrong-type", "")]
    assert kinds(tmp_path, document(training=[])) == [("missing-key", "training")]
    assert ("wrong-type", "training") in kinds(tmp_path, document(training={"A": 1}))


def test_an_unknown_key_comes_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'trainig'. Did you mean 'training'\?"):
        read(tmp_path, document(trainig=[]))
    with pytest.raises(DataError, match=r"'T1CEE'. Did you mean 't1ce'\?"):
        read(tmp_path, document(training=[entry("A", T1CEE="x.nii")]))
    with pytest.raises(DataError, match=r"'zzzzzz'\. Remove it\."):
        read(tmp_path, document(zzzzzz=0))


# Refusals of a case


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fold": -1}, ("wrong-type", "training[1].fold")),
        ({"fold": True}, ("wrong-type", "training[1].fold")),
        ({"fold": "0"}, ("wrong-type", "training[1].fold")),
        ({"fold": None}, ("wrong-type", "training[1].fold")),
        ({"fodl": 0}, ("unknown-key", "training[1].fodl")),
        ({"subject": 7}, ("wrong-type", "training[1].subject")),
        ({"t1ce": 7}, ("wrong-type", "training[1].t1ce")),
        ({"t1ce": ""}, ("wrong-type", "training[1].t1ce")),
        ({"t1ce": "a\x00b"}, ("wrong-type", "training[1].t1ce")),
        ({"t1ce": "a\ud800b"}, ("wrong-type", "training[1].t1ce")),
        ({"t1ce": "..\\secret"}, ("wrong-type", "training[1].t1ce")),
        ({"T1Gd": "other.nii"}, ("repeated-key", "training[1].T1Gd")),
        ({"image": "x.nii"}, ("repeated-key", "training[1].image")),
        ({"label": "x.nii"}, ("repeated-key", "training[1].label")),
        ({"seg": None}, ("wrong-type", "training[1].seg")),
        ({"t1": "X/X_flair.nii.gz"}, ("repeated-file", "training[1]")),
        ({"seg": "./X/X_t1.nii.gz"}, ("repeated-file", "training[1]")),
        ({"labels": [3]}, ("wrong-type", "training[1].labels")),
        ({"labels": None}, ("wrong-type", "training[1].labels")),
        ({"labels": {"tumour": 3}}, ("unknown-key", "training[1].labels.tumour")),
        ({"labels": {"oedema": "2"}}, ("wrong-type", "training[1].labels.oedema")),
        ({"labels": {"oedema": 4}}, ("wrong-type", "training[1].labels")),
        ({"case": "../../etc"}, ("wrong-type", "training[1].case")),
        ({"case": ".."}, ("wrong-type", "training[1].case")),
        ({"case": "a/b"}, ("wrong-type", "training[1].case")),
        ({"case": "x" * 200}, ("wrong-type", "training[1].case")),
        ({"case": 5}, ("wrong-type", "training[1].case")),
        ({"case": "A"}, ("duplicate-case", "training[1].case")),
        ({"case": "a"}, ("duplicate-case", "training[1].case")),
    ],
)
def test_a_wrong_case_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], expected: tuple[str, str]
) -> None:
    value = document(training=[entry("A"), {**entry("X"), **change}])
    assert kinds(tmp_path, value) == [expected]


def test_an_override_with_one_label_under_two_spellings_is_refused(tmp_path: Path) -> None:
    value = document(
        labels={"background": 0, "edema": 2},
        training=[entry("A", labels={"edema": 3, "oedema": 4})],
    )
    assert kinds(tmp_path, value) == [("wrong-type", "training[0].labels")]


def test_all_faults_of_all_cases_are_reported_together_and_named(tmp_path: Path) -> None:
    no_mask = {key: value for key, value in entry("B").items() if key not in ("seg", "t1ce")}
    value = document(
        training=[entry("A", fold=-1), no_mask, 7],
        testing=[{"case": "T"}, {"image": ["U_1.nii", "U_2.nii"]}, {}],
    )
    with pytest.raises(DataError, match=r"training\[0\]\.fold") as caught:
        read(tmp_path, value)
    found = [(one.case, one.kind, one.file.partition(" at ")[2]) for one in caught.value.problems]
    assert found == [
        ("A", "wrong-type", "training[0].fold"),
        ("B", "missing-key", "training[1].t1ce"),
        ("B", "missing-key", "training[1].seg"),
        ("training[2]", "wrong-type", "training[2]"),
        *[("T", "missing-key", f"testing[0].{name}") for name in MODALITIES],
        ("testing[1]", "wrong-number", "testing[1].image"),
        *[("testing[2]", "missing-key", f"testing[2].{name}") for name in MODALITIES],
    ]


def test_a_case_in_two_sections_is_refused(tmp_path: Path) -> None:
    assert kinds(tmp_path, document(testing=[entry("B")])) == [
        ("duplicate-case", "testing[0].case")
    ]


# Paths that lead out


@pytest.fixture
def outside(tmp_path: Path) -> tuple[Path, Path]:
    """A folder for the list, and a file beside it that the list must not reach."""
    root = tmp_path / "root"
    root.mkdir()
    secret = tmp_path / "secret.nii"
    secret.write_text("")
    return root, secret


@pytest.mark.parametrize("way", ["absolute", "dots", "link to the file", "link to a folder"])
def test_a_path_out_of_the_lists_folder_is_refused(outside: tuple[Path, Path], way: str) -> None:
    root, secret = outside
    (root / "file.nii").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    path = {
        "absolute": str(secret),
        "dots": "../secret.nii",
        "link to the file": "file.nii",
        "link to a folder": "folder/secret.nii",
    }[way]
    value = document(training=[entry("A", t1=path)])
    assert kinds(root, value) == [("outside-root", "training[0].t1")]
    trusted = read(root, value, allow_outside_root=True)
    assert trusted.training[0].images[1].samefile(secret)


def test_a_drive_and_an_absolute_path_inside_are_refused_too(tmp_path: Path) -> None:
    for path in ("C:/data/x.nii", str(tmp_path / "x.nii")):
        value = document(training=[entry("A", t1=path)])
        assert kinds(tmp_path, value) == [("outside-root", "training[0].t1")]


def test_dots_and_links_that_stay_inside_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "alias").symlink_to("data")
    (tmp_path / "loop").symlink_to("loop")  # goes nowhere, and must not hang or raise
    value = document(training=[entry("A", t1="alias/../x.nii", t2="loop", seg="alias/y.nii")])
    assert read(tmp_path, value).training[0].id == "A"


def test_a_list_in_a_linked_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    datalist = read(tmp_path / "linked", document())
    assert datalist.training[0].images[0] == tmp_path / "real" / "A" / "A_flair.nii.gz"


# Splitting


def ids(cases: Any) -> list[str]:
    return [case.id for case in cases]


def test_split_by_fold(tmp_path: Path) -> None:
    datalist = read(tmp_path, document(training=[*document()["training"], entry("D")]))
    train, validate = datalist.split(1)
    assert (ids(train), ids(validate)) == (["A", "D"], ["B", "C"])  # D has no fold: always trains
    train, validate = datalist.split(None)
    assert (ids(train), ids(validate)) == (["B", "C", "D"], ["A"])


def test_split_by_the_validation_section(tmp_path: Path) -> None:
    unlabelled = {key: value for key, value in entry("V").items() if key != "seg"}
    datalist = read(tmp_path, document(validation=[entry("W"), unlabelled]))
    train, validate = datalist.split(None)
    assert (ids(train), ids(validate)) == (["A", "B", "C"], ["W"])
    assert ids(datalist.split(0)[1]) == ["A"]  # a named fold goes before the section


def test_split_refuses_what_leaves_nothing(tmp_path: Path) -> None:
    datalist = read(tmp_path, document())
    with pytest.raises(DataError, match=r"no case .* is in fold 7. The folds are 0, 1\."):
        datalist.split(7)
    only = read(tmp_path, document(training=[entry("A", fold=0)]))
    with pytest.raises(DataError, match="no labelled case is left to train on"):
        only.split(0)
    no_folds = read(tmp_path, document(training=[entry("A")]))
    with pytest.raises(DataError, match=r"fold 0. It has no folds\."):
        no_folds.split(None)
    unlabelled = {key: value for key, value in entry("V").items() if key != "seg"}
    no_masks = read(tmp_path, document(validation=[unlabelled]))
    with pytest.raises(DataError, match=r"validation section is labelled; name a fold"):
        no_masks.split(None)


def test_parsing_does_not_change_the_document(tmp_path: Path) -> None:
    value = decathlon(training=[{**entry("A"), "T1Gd": "x.nii"}, {"image": "B.nii", "label": "L"}])
    del value["training"][0]["t1ce"]
    before = copy.deepcopy(value)
    parse_datalist(value, path=tmp_path / "list.json", allow_outside_root=False)
    assert value == before
