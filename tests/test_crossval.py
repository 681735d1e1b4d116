"""Cross-validation as a user runs it: folder, masks, scores, what it refuses, how it resumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, LABELS, SHAPE, make_cohort, save_nifti
from killed_crossval import NUM_CASES, NUM_FOLDS, OPTIONS
from prediction_files import probabilities_of, write_probabilities

from networks import build_network
from pipeline import crossval, evaluate, report, train
from pipeline.cli import ExitCode
from pipeline.config import build_settings
from pipeline.crossvalidation import masks, processes
from pipeline.crossvalidation.masks import ORIGIN, write_masks
from pipeline.crossvalidation.needs import needs_in_words
from pipeline.crossvalidation.plan import FORCED, STATEMENT, Plan, claim_folder, folds_of
from pipeline.crossvalidation.processes import Command
from pipeline.crossvalidation.run import fold_commands, report_command
from pipeline.data.datalist import read_datalist
from pipeline.data.lock import locked_folder
from pipeline.errors import SettingsError
from pipeline.inference.records import outputs_of, write_record
from pipeline.model.trained import load_model

TESTS = Path(__file__).parent
Captured = pytest.CaptureFixture[str]
Folds = dict[int, dict[str, float | None]]

UNET: dict[str, Any] = {"name": "UNet3D", "in_channels": 4, "out_channels": 4}
TINY = (
    "--set=preprocessing.border_crop=[[1, 1], [1, 1], [1, 1]]",
    "--set=network.settings.num_levels=2",
    "--set=network.settings.num_filters=2",
    "--set=training.max_epochs=1",
)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return make_cohort(tmp_path / "data", num_cases=6, num_folds=3)


@pytest.fixture
def plan(cohort: Path, tmp_path: Path) -> Plan:
    settings = build_settings({"training": {"max_epochs": 7}}, FORCED)
    (tmp_path / "cv").mkdir()
    return Plan(tmp_path / "cv", read_datalist(cohort), (0, 1, 2), settings)


# ---- Which folds, in which folder ---------------------------------------------------------------


def test_all_folds_of_the_list_or_those_that_are_wanted(cohort: Path) -> None:
    datalist = read_datalist(cohort)
    assert folds_of(datalist, None) == (0, 1, 2)
    assert folds_of(datalist, [2, 0, 2]) == (0, 2)


@pytest.mark.parametrize("wanted", [[0, 3], [1], [1, 1]], ids=["unknown", "one", "one twice"])
def test_other_folds_are_refused(cohort: Path, wanted: list[int]) -> None:
    with pytest.raises(SettingsError, match="--folds: expected at least two of 0, 1, 2, the folds"):
        folds_of(read_datalist(cohort), wanted)


def test_a_list_without_folds_is_refused(tmp_path: Path) -> None:
    datalist = read_datalist(make_cohort(tmp_path, num_folds=None))
    with pytest.raises(SettingsError, match=r"expected at least two folds .* found 0\. Deal"):
        folds_of(datalist, None)


def test_a_folder_is_claimed_once_and_again(plan: Plan) -> None:
    claim_folder(plan)
    before = (plan.folder / STATEMENT).read_bytes()
    claim_folder(plan)
    assert (plan.folder / STATEMENT).read_bytes() == before
    assert json.loads(before)["settings"]["validation"]["every_epochs"] is None


def test_what_has_no_effect_on_the_numbers_may_change(plan: Plan) -> None:
    claim_folder(plan)
    settings = build_settings(
        plan.settings.model_dump(mode="json"), {"loading": {"num_workers": 3}}
    )
    claim_folder(replace(plan, settings=settings))
    stored = json.loads((plan.folder / STATEMENT).read_text())
    assert stored["settings"]["loading"]["num_workers"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": (0, 1)}, r"cv: holds .* with folds \[0, 1, 2\]; found \[0, 1\]"),
        ({"probabilities": False}, "with probabilities True; found False"),
        (
            {"settings": build_settings({"training": {"max_epochs": 8}}, FORCED)},
            "other settings: training.max_epochs: 7 -> 8. Repeat the command as it was",
        ),
        (
            {"settings": build_settings({"inference": {"flips": True}}, FORCED)},
            "inference.flips: False -> True",
        ),
    ],
    ids=["folds", "probabilities", "epochs", "mirrorings"],
)
def test_another_cross_validation_in_the_folder_is_refused(
    plan: Plan, changes: dict[str, Any], message: str
) -> None:
    claim_folder(plan)
    with pytest.raises(SettingsError, match=message):
        claim_folder(replace(plan, **changes))


def test_changed_data_are_refused(plan: Plan) -> None:
    claim_folder(plan)
    path = plan.cases[1][0].images[0]
    save_nifti(path, np.zeros(SHAPE, dtype=np.int16))
    with pytest.raises(SettingsError, match=r"of cohort\.json as it was then"):
        claim_folder(plan)


def test_cases_in_other_folds_are_refused(plan: Plan) -> None:
    claim_folder(plan)
    document = json.loads(plan.datalist.path.read_text())
    first, second = document["training"][:2]
    first["fold"], second["fold"] = second["fold"], first["fold"]
    plan.datalist.path.write_text(json.dumps(document))
    with pytest.raises(SettingsError, match="other cases, folds or files"):
        claim_folder(replace(plan, datalist=read_datalist(plan.datalist.path)))


def test_folds_of_somebody_else_are_not_taken_over(plan: Plan) -> None:
    plan.run_folder(0).mkdir()
    with pytest.raises(SettingsError, match=r"found folds without it\. Choose another"):
        claim_folder(plan)


@pytest.mark.parametrize("content", ["{}", '{"folds": [0, 1]}', "[]"])
def test_a_statement_of_another_version_is_refused(plan: Plan, content: str) -> None:
    (plan.folder / STATEMENT).write_text(content)
    with pytest.raises(SettingsError, match=r"crossval.json is not of this version"):
        claim_folder(plan)


@pytest.mark.parametrize(
    "assignment",
    ["validation.every_epochs=2", "inference.min_et_volume_ml=0.1", "fold=1"],
)
def test_what_it_decides_itself_cannot_be_set(
    cohort: Path, tmp_path: Path, capsys: Captured, assignment: str
) -> None:
    argv = [str(cohort), f"--output-dir={tmp_path / 'cv'}", f"--set={assignment}"]
    assert crossval.main(argv) == ExitCode.SETTINGS
    told = f"--set {assignment.partition('=')[0]}: a cross-validation decides this itself."
    assert told in capsys.readouterr().err
    assert not (tmp_path / "cv").exists()


def test_a_folder_in_use_is_refused(cohort: Path, tmp_path: Path, capsys: Captured) -> None:
    argv = [str(cohort), f"--output-dir={tmp_path / 'cv'}", *TINY]
    with locked_folder(tmp_path / "cv"):
        assert crossval.main(argv) == ExitCode.RESOURCES
    assert "cv: in use by process" in capsys.readouterr().err


def test_the_disk_is_told_beforehand(plan: Plan) -> None:
    # Of each parameter: 3 folds, 4 checkpoints of 3 copies, and the ensemble's; 4 bytes each.
    told = needs_in_words(plan)
    num_parameters = sum(each.numel() for each in build_network(**UNET).parameters())
    assert f"about {3 * 13 * 4 * num_parameters / 1e6:.0f} MB for checkpoints" in told
    assert "at most 0 MB for probabilities" in told
    assert "probabilities" not in needs_in_words(replace(plan, probabilities=False))


def test_a_network_that_cannot_be_built_is_told_before_the_first_training(plan: Plan) -> None:
    settings = build_settings({"network": {"name": "UNet3D", "settings": {"depth": 3}}}, FORCED)
    with pytest.raises(SettingsError, match=r"network: .*depth"):
        needs_in_words(replace(plan, settings=settings))


# ---- What the processes are told ----------------------------------------------------------------


def test_the_commands_of_a_fold(plan: Plan, tmp_path: Path) -> None:
    settings = build_settings(
        plan.settings.model_dump(mode="json"), {"loading": {"mask_nonfinite": True}}
    )
    plan = replace(plan, settings=settings, cache_dir=tmp_path / "cache", allow_outside_root=True)
    training, inference = fold_commands(plan, 1, "cuda:1")
    for command in (training, inference):
        words = command.arguments
        assert words[words.index("--fold") + 1] == "1"
        assert words[words.index("--device") + 1] == "cuda:1"
        assert {"--mask-nonfinite", "--allow-outside-root"} <= set(words)
    assert {"--resume", str(tmp_path / "cache"), str(plan.folder / "settings.json")} <= set(
        training.arguments
    )
    assert "--probabilities" in inference.arguments
    less = replace(plan, probabilities=False)
    assert "--probabilities" not in fold_commands(less, 1, "cpu")[1].arguments


def test_trainings_at_the_same_time_share_the_memory(plan: Plan) -> None:
    words = fold_commands(plan, 1, "cuda:1", num_at_a_time=4)[0].arguments
    assert words[words.index("--set") + 1] == "loading.cache_memory_fraction=0.125"


def test_a_training_never_opens_a_file_of_its_fold(plan: Plan, tmp_path: Path) -> None:
    settings = build_settings(
        {
            "preprocessing": {"border_crop": [[1, 1]] * 3},
            "network": {"settings": {"num_levels": 2, "num_filters": 2}},
            "training": {"max_epochs": 1},
        },
        FORCED,
    )
    weights = []
    for name in ("sound", "damaged"):
        (tmp_path / name).mkdir()
        made = replace(plan, folder=tmp_path / name, settings=settings)
        claim_folder(made)
        if name == "damaged":
            for case in made.cases[1]:
                for path in (*case.images, case.label):
                    assert path is not None
                    path.unlink()
        training, _ = fold_commands(made, 1, "cpu")
        assert train.main(list(training.arguments)) == ExitCode.DONE
        weights.append(load_model(made.run_folder(1)).digest)
    assert weights[0] == weights[1]


# ---- The final masks ----------------------------------------------------------------------------


def classes_with_speck() -> np.ndarray:
    classes = np.zeros(SHAPE, dtype=np.uint8)
    classes[4:9, 4:9, 3:7] = 2
    classes[5:7, 5:7, 4] = 3
    classes[1, 1, 1] = 1
    return classes


@pytest.fixture
def raw(plan: Plan) -> Plan:
    """The plan, with masks as inference makes them: a speck, and a small enhancing tumour."""
    for fold, cases in plan.cases.items():
        folder = plan.raw_masks(fold)
        folder.mkdir(parents=True)
        for case in cases:
            classes = classes_with_speck()
            mask = np.array(list(LABELS.values()), dtype=np.uint8)[classes]
            paths = [
                save_nifti(folder / f"{case.id}_seg.nii.gz", mask),
                write_probabilities(folder, case.id, probabilities_of(classes, certainty=0.7)),
            ]
            record = {
                "case": case.id,
                "labels": LABELS,
                "models": [],
                "cleaning": ["before"],
                "request": "of the other folder",
                "outputs": outputs_of(paths),
            }
            write_record(folder, case.id, record)
    return plan


OF_FOLDS: Folds = {
    0: {"min_et_volume_ml": None, "min_component_ml": None},
    1: {"min_et_volume_ml": 0.05, "min_component_ml": None},
    2: {"min_et_volume_ml": None, "min_component_ml": 0.05},
}


def test_each_fold_is_cleaned_with_its_own_thresholds(raw: Plan) -> None:
    write_masks(raw, OF_FOLDS)
    classes = classes_with_speck()
    without_et, without_speck = classes.copy(), classes.copy()
    without_et[classes == 3] = 1
    without_speck[classes == 1] = 0
    expected = {0: classes, 1: without_et, 2: without_speck}
    for fold, cases in raw.cases.items():
        for case in cases:
            image = nib.load(raw.masks / f"{case.id}_seg.nii.gz")
            values = np.array(list(LABELS.values()))[expected[fold]]
            assert np.array_equal(np.asarray(image.dataobj), values)
            assert np.allclose(image.affine, AFFINE)
            before = nib.load(raw.raw_masks(fold) / f"{case.id}_seg.nii.gz")
            assert np.array_equal(
                np.asarray(before.dataobj), np.array(list(LABELS.values()))[classes]
            )


def test_the_record_says_how(raw: Plan) -> None:
    write_masks(raw, OF_FOLDS)
    case = raw.cases[1][0].id
    record = json.loads((raw.masks / f"{case}.json").read_text())
    before = json.loads((raw.raw_masks(1) / f"{case}.json").read_text())
    assert record[ORIGIN] == {"fold": 1, "thresholds": OF_FOLDS[1], "before": before["outputs"]}
    assert record["cleaning"][0] == "before"
    assert record["cleaning"][1].startswith("smallest ET volume: 4 voxels")
    assert record["volumes_ml"]["ET"] == 0
    assert record["volumes_ml"]["WT"] == pytest.approx(101 * 1.2 * 0.9 * 2.5 / 1000, abs=1e-6)
    assert "request" not in record
    names = {f"{case}_seg.nii.gz", f"{case}_probabilities.nii.gz"}
    assert set(record["outputs"]) == names


def test_probabilities_take_no_disk_twice_and_are_found(raw: Plan, tmp_path: Path) -> None:
    write_masks(raw, OF_FOLDS)
    for fold, cases in raw.cases.items():
        name = f"{cases[0].id}_probabilities.nii.gz"
        assert (raw.masks / name).samefile(raw.raw_masks(fold) / name)
    argv = [str(raw.masks), str(raw.datalist.path), "-o", str(tmp_path / "scores")]
    assert evaluate.main(argv) == ExitCode.DONE
    scores = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert scores["article_metrics_from"]["probabilities"] == 6


def test_where_a_disk_has_no_second_names_they_are_copied(
    raw: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(masks.Path, "hardlink_to", refuse)
    write_masks(raw, OF_FOLDS)
    name = f"{raw.cases[0][0].id}_probabilities.nii.gz"
    source, copy = raw.raw_masks(0) / name, raw.masks / name
    assert not copy.samefile(source)
    assert copy.read_bytes() == source.read_bytes()


def test_a_finished_mask_is_not_written_again(raw: Plan) -> None:
    write_masks(raw, OF_FOLDS)
    case = raw.cases[2][0].id
    kept, changed = raw.masks / f"{case}_seg.nii.gz", raw.masks / f"{raw.cases[0][0].id}_seg.nii.gz"
    inode, content = kept.stat().st_ino, changed.read_bytes()
    changed.write_bytes(b"damaged")
    write_masks(raw, OF_FOLDS)
    assert kept.stat().st_ino == inode
    assert changed.read_bytes() == content
    assert not [path.name for path in raw.masks.iterdir() if ".tmp." in path.name]


def test_other_thresholds_make_other_masks(raw: Plan) -> None:
    write_masks(raw, OF_FOLDS)
    path = raw.masks / f"{raw.cases[0][0].id}_seg.nii.gz"
    before = path.read_bytes()
    write_masks(raw, {**OF_FOLDS, 0: OF_FOLDS[1]})
    assert path.read_bytes() != before


# ---- A whole one --------------------------------------------------------------------------------


def campaign(root: Path, num_kills: int) -> str:
    command = [sys.executable, str(TESTS / "killed_crossval.py"), str(root), str(num_kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a cross-validation left: `data/cohort.json` and `reference`."""
    folder = tmp_path_factory.mktemp("whole")
    campaign(folder, 0)
    return folder


def summary_of(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "reference" / "summary.json").read_text())
    return content


@pytest.mark.slow
def test_no_case_is_scored_by_a_model_that_has_seen_it(root: Path) -> None:
    summary = summary_of(root)
    assert summary["seen_in_training"] == {"seen": 0, "unseen": NUM_CASES, "unknown": 0}
    assert summary["warnings"] == []
    assert len(summary["models"]) == NUM_FOLDS


@pytest.mark.slow
def test_the_scores_are_those_of_evaluate(root: Path, tmp_path: Path) -> None:
    summary = summary_of(root)
    argv = [str(root / "reference" / "masks"), str(root / "data" / "cohort.json"), "-o"]
    assert evaluate.main([*argv, str(tmp_path / "scores")]) == ExitCode.DONE
    expected = json.loads((tmp_path / "scores" / "summary.json").read_text())
    for name, scores in summary["all"]["scores"].items():
        assert scores == expected["summary"][name], name
    rows = (tmp_path / "scores" / "cases.csv").read_bytes()
    assert (root / "reference" / "scores" / "cases.csv").read_bytes() == rows
    # Worst first, as there.
    assert [row["case"] for row in summary["cases"]] == [row["case"] for row in expected["cases"]]


@pytest.mark.slow
def test_the_folds_add_up_to_all(root: Path) -> None:
    summary = summary_of(root)
    folds = summary["of_folds"].values()
    assert sum(fold["num_cases"] for fold in folds) == NUM_CASES
    for name in ("dice_mean", "hd95_mm_WT", "lesion_dice_WT", "background_dice_WT", "ece"):
        mean = sum(fold["num_cases"] * fold["scores"][name]["mean"] for fold in folds) / NUM_CASES
        # Sums in another order: the last bits of float64.
        assert summary["all"]["scores"][name]["mean"] == pytest.approx(mean, rel=1e-12)
    assert summary["all"]["scores"]["dice_mean"]["mean"] > 0
    assert set(summary["thresholds"]["folds"]) == {"0", "1", "2"}


@pytest.mark.slow
def test_the_summary_names_no_place_of_this_machine(root: Path) -> None:
    for name in ("summary.json", "summary.md", STATEMENT):
        assert str(root) not in (root / "reference" / name).read_text()


@pytest.mark.slow
def test_the_ensemble_has_all_models_and_their_thresholds(root: Path) -> None:
    model = load_model(root / "reference" / "ensemble.pt")
    assert model.network["num_members"] == NUM_FOLDS
    assert model.trained_on is not None
    assert len(model.trained_on) == NUM_CASES
    chosen = summary_of(root)["thresholds"]["ensemble"]["thresholds"]
    assert {name: model.settings["inference"][name] for name in chosen} == chosen
    assert model.scores["dice_mean"] == summary_of(root)["all"]["scores"]["dice_mean"]["mean"]


@pytest.mark.slow
def test_the_report_is_of_the_folder(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cv"
    shutil.copytree(root / "reference", folder)
    datalist = read_datalist(root / "data" / "cohort.json")
    plan = Plan(folder, datalist, tuple(range(NUM_FOLDS)), build_settings())
    command = report_command(plan)
    assert command.verb == "report"
    assert report.main([*command.arguments, "--html-only"]) == ExitCode.DONE
    html = (folder / "report.html").read_text()
    assert "training.max_epochs" in html
    assert all(case.id in html for case in datalist.training)


@pytest.mark.slow
def test_the_same_folder_with_other_options_is_refused(root: Path, capsys: Captured) -> None:
    argv = [str(root / "data" / "cohort.json"), f"--output-dir={root / 'reference'}", *OPTIONS]
    assert crossval.main([*argv, "--seed=1"]) == ExitCode.SETTINGS
    assert "other settings: seed: 0 -> 1" in capsys.readouterr().err


class Done:
    """A process that has nothing left to do."""

    def poll(self) -> int:
        return 0

    def send_signal(self, _: int) -> None:
        raise AssertionError("it has ended already")


@pytest.mark.slow
def test_a_finished_one_is_not_done_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    folder = tmp_path / "cv"
    shutil.copytree(root / "reference", folder)
    verbs: list[str] = []

    def start(command: Command, **_: object) -> Done:
        verbs.append(command.verb)
        return Done()

    monkeypatch.setattr(processes, "start", start)
    names = ("summary.json", "summary.md", "scores/cases.csv", "masks/case_000_seg.nii.gz")
    before = [(folder / name).read_bytes() for name in names]
    kept = [folder / "ensemble.pt", *folder.glob("masks/*_seg.nii.gz")]
    inodes = [path.stat().st_ino for path in kept]
    argv = [str(root / "data" / "cohort.json"), f"--output-dir={folder}", *OPTIONS]
    argv.remove("--no-report")
    assert crossval.main(argv) == ExitCode.DONE
    assert [(folder / name).read_bytes() for name in names] == before
    assert [path.stat().st_ino for path in kept] == inodes
    # They find out for themselves that they are finished; the report had been left out.
    assert verbs == [*["train", "infer"] * NUM_FOLDS, "report"]
    output = capsys.readouterr().out
    assert "3 folds (0, 1, 2) with 6 cases: for each, 4 epochs" in output
    assert "new cases" in output
    assert f"In {folder}:" in output
    (folder / "report.html").touch()
    verbs.clear()
    assert crossval.main(argv) == ExitCode.DONE
    assert "report" not in verbs


@pytest.mark.slow
def test_killed_in_every_stage_it_comes_to_the_same(tmp_path: Path) -> None:
    assert campaign(tmp_path / "root", 5) == "5 kills; the rerun completed"
