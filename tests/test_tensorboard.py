"""What TensorBoard itself reads from the event files of a run."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ResourceError
from pipeline.training.tensorboard import FOLDER_NAME, Board

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="TensorBoard's own reader says what it would show",
)


def read(folder: Path) -> accumulators.EventAccumulator:  # type: ignore[name-defined]
    return accumulators.EventAccumulator(str(folder / FOLDER_NAME)).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_iterations(tmp_path: Path) -> None:
    board = Board(tmp_path, first_iteration=0)
    board.add_iteration(1, loss=0.5, learning_rate=0.25)
    board.add_iteration(2, loss=0.125, learning_rate=0.25)
    board.close()
    assert points(tmp_path, "training/loss") == [(1, 0.5), (2, 0.125)]
    assert points(tmp_path, "training/learning_rate") == [(1, 0.25), (2, 0.25)]


def test_a_validation_stands_beside_the_background(tmp_path: Path) -> None:
    board = Board(tmp_path, first_iteration=0)
    picture = np.zeros((2, 6, 3), dtype=np.uint8)
    board.add_validation(
        4,
        metrics={"dice_mean": 0.5, "background_dice_mean": 0.25},
        pictures={"case_1": picture},
    )
    board.close()
    assert points(tmp_path, "validation/dice_mean") == [(4, 0.5)]
    assert points(tmp_path, "everything is background/dice_mean") == [(4, 0.25)]
    (image,) = read(tmp_path).Images("image, truth, prediction/case_1")
    assert (image.step, image.height, image.width) == (4, 2, 6)


def test_a_validation_can_be_seen_while_the_run_goes_on(tmp_path: Path) -> None:
    board = Board(tmp_path, first_iteration=0)
    board.add_validation(4, metrics={"dice_mean": 0.5}, pictures={})
    assert points(tmp_path, "validation/dice_mean") == [(4, 0.5)]
    board.close()


# 0: the first start was killed before its first checkpoint. 2: it is resumed after iteration 2.
@pytest.mark.parametrize("first_iteration", [0, 2])
def test_what_was_written_after_the_checkpoint_is_purged(
    tmp_path: Path, first_iteration: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**9, 10**9 + 1000))  # event files are read in the order of their times
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    for start, loss in ((0, 1.0), (first_iteration, 2.0)):
        board = Board(tmp_path, first_iteration=start)
        for iteration in range(start + 1, 4):
            board.add_iteration(iteration, loss=loss, learning_rate=1.0)
        board.close()
    monkeypatch.undo()
    expected = [(step, 1.0 if step <= first_iteration else 2.0) for step in (1, 2, 3)]
    assert points(tmp_path, "training/loss") == expected


def test_hyper_parameters_are_flat_and_open_no_second_run(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    board = Board(tmp_path, first_iteration=0)
    board.add_hyper_parameters(
        {"seed": 3, "training": {"loss": "dice", "amp": True, "clip": None}, "axes": [0, 1]}
    )
    board.close()
    assert len(list((tmp_path / FOLDER_NAME).iterdir())) == 1
    content = read(tmp_path).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.WhichOneof("kind") for name, value in hparams.items()} == {
        "seed": "number_value",
        "training.loss": "string_value",
        "training.amp": "number_value",
        "training.clip": "string_value",
        "axes": "string_value",
    }
    assert hparams["seed"].number_value == 3
    assert hparams["training.clip"].string_value == "None"
    assert hparams["axes"].string_value == "[0, 1]"


def test_event_files_do_not_name_the_machine(tmp_path: Path) -> None:
    Board(tmp_path, first_iteration=0).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name.split(".")[4] == "run"
    assert socket.gethostname() != "run", "the machine's name is as it was afterwards"


def test_what_could_not_be_written_at_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path, first_iteration=0)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(board.writer, "flush", full)
    with pytest.raises(ResourceError, match=r"tensorboard: the curves .* the disk is full"):
        board.close()
    monkeypatch.undo()
    board.close()
