"""Order and randomness of training samples: functions of (seed, epoch, index), whoever draws."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from pipeline.data.loaders import (
    NUM_THREADS,
    AugmentedCases,
    EpochSampler,
    ReadyLoader,
    outlive_one_signal,
    training_loader,
    validation_loader,
)
from transforms import build_augmentation

Case = dict[str, Any]


def make_cases(num_cases: int = 3) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": MetaTensor(torch.rand(2, 6, 5, 3, generator=generator)),
            "label": MetaTensor(
                torch.randint(0, 4, (1, 6, 5, 3), generator=generator, dtype=torch.uint8)
            ),
            "case": f"case_{index:03d}",
        }
        for index in range(num_cases)
    ]


def make_augmented(cases: list[Case], *, seed: int = 7) -> AugmentedCases:
    chain = build_augmentation(intensity_scale=0.1, intensity_shift=0.1)
    return AugmentedCases(cases, augmentation=chain, seed=seed)


def assert_same(left: Case, right: Case) -> None:
    assert left["case"] == right["case"]
    for key in ("image", "label"):
        assert torch.equal(torch.as_tensor(left[key]), torch.as_tensor(right[key]))


def test_a_worker_outlives_the_first_of_each_stop_signal() -> None:
    process = os.fork()
    if process == 0:
        outlive_one_signal(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGTERM


def test_the_second_signal_has_its_usual_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    outlive_one_signal(0)
    handlers[signal.SIGUSR1](signal.SIGUSR1, None)
    assert handlers[signal.SIGUSR1] is signal.SIG_DFL
    assert callable(handlers[signal.SIGTERM])
    assert signal.getsignal(signal.SIGUSR1) == before


# ---- EpochSampler -------------------------------------------------------------------------------


def test_an_epoch_is_every_case_once_with_its_epoch() -> None:
    sampler = EpochSampler(10, seed=1)
    sampler.start(epoch=3)
    keys = list(sampler)
    assert {epoch for epoch, _ in keys} == {3}
    assert sorted(index for _, index in keys) == list(range(10))
    assert all(type(index) is int for _, index in keys)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(10, seed=seed)
        sampler.start(epoch=epoch)
        return [index for _, index in sampler]

    assert order(1, 1) == order(1, 1)
    # One of 10! orders: that two of these are equal by chance will not happen.
    assert order(1, 1) != order(1, 2)
    assert order(1, 1) != order(2, 1)
    assert order(1, 2) != order(2, 1)


def test_asking_for_an_iterator_changes_nothing() -> None:
    sampler = EpochSampler(5, seed=1)
    sampler.start(epoch=2, num_done=2)
    first, second = iter(sampler), iter(sampler)
    assert list(first) == list(second) == list(sampler)


def test_what_is_done_is_left_out_and_the_rest_keeps_its_order() -> None:
    sampler = EpochSampler(5, seed=1)
    sampler.start(epoch=2)
    whole = list(sampler)
    sampler.start(epoch=2, num_done=3)
    assert list(sampler) == whole[3:]
    assert len(sampler) == 5  # the engine counts the iterations of the whole epoch by it
    sampler.start(epoch=3)
    assert len(list(sampler)) == 5


def test_an_iterator_under_way_stays_in_its_epoch() -> None:
    sampler = EpochSampler(3, seed=1)
    under_way = iter(sampler)
    sampler.start(epoch=2)
    assert [epoch for epoch, _ in under_way] == [1, 1, 1]


# ---- AugmentedCases -----------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_what_was_drawn_before() -> None:
    dataset = make_augmented(make_cases())
    first = dataset[(1, 0)]
    for key in ((1, 1), (2, 0), (1, 2)):
        dataset[key]
    assert_same(dataset[(1, 0)], first)


@pytest.mark.parametrize(("key", "seed"), [((2, 0), 7), ((1, 1), 7), ((1, 0), 8)])
def test_a_sample_depends_on_seed_epoch_and_index(key: tuple[int, int], seed: int) -> None:
    # The same case at every index, so that only the randomness can differ.
    cases = make_cases(1) * 3
    sample = make_augmented(cases, seed=seed)[key]
    assert not torch.equal(sample["image"], make_augmented(cases)[(1, 0)]["image"])


def test_the_cached_case_is_not_changed() -> None:
    cases, untouched = make_cases(), make_cases()
    dataset = make_augmented(cases)
    for epoch in range(1, 5):
        dataset[(epoch, 1)]
    assert_same(cases[1], untouched[1])
    assert cases[1].keys() == untouched[1].keys()
    assert len(dataset) == 3


class Adding:
    """An augmentation that writes into the dictionary it is given."""

    def __call__(self, item: Case, /) -> Case:
        item["more"] = True
        return item

    def set_random_state(self, seed: int) -> None:
        pass


def test_an_augmentation_may_write_into_its_dictionary() -> None:
    cases = make_cases()
    assert AugmentedCases(cases, augmentation=Adding(), seed=7)[(1, 0)]["more"]
    assert "more" not in cases[0]


# ---- Loaders ------------------------------------------------------------------------------------


def load(num_workers: int, *, num_done: int = 0) -> list[Case]:
    loader, sampler = training_loader(
        make_cases(4),
        augmentation=build_augmentation(),
        seed=5,
        batch_size=2,
        num_workers=num_workers,
    )
    sampler.start(epoch=2, num_done=num_done)
    assert len(loader) == 2
    return list(loader)


# Forking a process that has threads: torch's own choice on Linux, and Python 3.12 warns of it.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_workers_give_the_same_batches_as_none() -> None:
    alone = load(0)
    for left, right in zip(alone, load(2), strict=True):
        assert_same(left, right)
    assert alone[0]["image"].shape == (2, 2, 6, 5, 3)
    assert len(alone[0]["case"]) == 2


def test_the_rest_of_an_epoch_is_that_of_the_whole_one() -> None:
    whole, rest = load(0), load(0, num_done=2)
    assert len(rest) == 1
    assert_same(whole[1], rest[0])


def test_validation_cases_come_alone_whole_and_in_order() -> None:
    cases = make_cases()
    batches = list(validation_loader(cases))  # type: ignore[arg-type]  # a list serves as well
    assert [batch["case"] for batch in batches] == [[case["case"]] for case in cases]
    for batch, case in zip(batches, cases, strict=True):
        assert torch.equal(batch["image"][0], case["image"])
        assert torch.equal(batch["label"][0], case["label"])


# ---- Threads ------------------------------------------------------------------------------------


class Slow:
    """Cases that are their index, take a moment, and note who asked for them."""

    def __init__(self, num_cases: int, *, broken: int | None = None) -> None:
        self.num_cases = num_cases
        self.broken = broken
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return self.num_cases

    def __getitem__(self, index: int) -> int:
        self.asked.append(index)
        self.threads.add(threading.current_thread().name)
        # The first ones take longest, so that the order would change if it could.
        time.sleep(0.05 if index < 2 else 0.0)
        if index == self.broken:
            raise ValueError(f"case {index} is damaged")
        return index


def slow_loader(cases: Slow) -> ReadyLoader:
    return ReadyLoader(cases, batch_size=1, num_workers=0, collate_fn=lambda items: items[0])  # type: ignore[arg-type]


def loader_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("loader")]


def test_batches_are_made_by_threads_and_keep_their_order() -> None:
    cases = Slow(7)
    assert list(slow_loader(cases)) == list(range(7))
    assert all(name.startswith("loader") for name in cases.threads)
    assert loader_threads() == []


def test_batches_are_made_ahead_but_not_many() -> None:
    cases = Slow(20)
    batches = iter(slow_loader(cases))
    assert cases.asked == [], "the sampler may still be positioned"
    assert next(batches) == 0
    time.sleep(0.2)
    assert 2 <= len(cases.asked) <= 1 + NUM_THREADS
    assert list(batches) == list(range(1, 20))


def test_the_threads_end_where_the_iteration_is_given_up() -> None:
    cases = Slow(20)
    batches = iter(slow_loader(cases))
    next(batches)
    del batches
    at_the_end = len(cases.asked)
    assert loader_threads() == []
    time.sleep(0.1)
    assert len(cases.asked) == at_the_end


def test_an_error_comes_in_its_turn_and_as_it_is() -> None:
    batches = iter(slow_loader(Slow(6, broken=3)))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="case 3 is damaged"):
        next(batches)
    assert loader_threads() == []


def test_a_signal_is_answered_while_a_batch_is_waited_for() -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGUSR1, stop)
    cases = Slow(2)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(Stopped):
            list(slow_loader(cases))
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert loader_threads() == []


def test_threads_augment_as_one_would() -> None:
    cases = make_cases(6)
    chain = build_augmentation(intensity_scale=0.1, intensity_shift=0.1)
    loader, sampler = training_loader(
        cases, augmentation=chain, seed=7, batch_size=1, num_workers=0
    )
    for epoch in range(1, 9):
        sampler.start(epoch=epoch)
        for key, batch in zip(sampler, loader, strict=True):
            alone = make_augmented(cases)[key]
            assert torch.equal(batch["image"][0], torch.as_tensor(alone["image"]))
            assert torch.equal(batch["label"][0], torch.as_tensor(alone["label"]))


def test_one_case_is_handed_over_without_a_copy_and_without_metadata() -> None:
    cases = make_cases(1)
    loader, _ = training_loader(cases, augmentation=Adding(), seed=7, batch_size=1, num_workers=0)
    batch = next(iter(loader))
    assert type(batch["image"]) is torch.Tensor
    assert batch["image"].data_ptr() == cases[0]["image"].data_ptr()
    assert batch["case"] == ["case_000"]
