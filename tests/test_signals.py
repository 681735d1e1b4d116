"""The first signal is noted; what was there before comes back for the second."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.signals import STOP_SIGNALS, StopRequest

Received = list[int]


@pytest.fixture
def received() -> Iterator[Received]:
    """Harmless handlers, whose calls are listed, stand in for those that would end the process."""
    numbers: Received = []
    before = {
        number: signal.signal(number, lambda number, _: numbers.append(number))
        for number in STOP_SIGNALS
    }
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)  # to the own process: handled before the next line


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_only_noted(received: Received, number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        assert stop.signal_name == number.name
    assert received == []


def test_a_second_signal_has_its_usual_effect(received: Received) -> None:
    with StopRequest() as stop:
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert stop.signal_name == "SIGUSR1"


def test_the_handlers_come_back_without_a_signal(received: Received) -> None:
    with StopRequest() as stop:
        pass
    for number in STOP_SIGNALS:
        send(number)
    assert received == list(STOP_SIGNALS)
    assert not stop.requested


def test_the_handlers_come_back_after_an_error(received: Received) -> None:
    with pytest.raises(RuntimeError, match="training failed"), StopRequest():
        raise RuntimeError("training failed")
    send(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_a_signal_amid_the_restoring_does_no_harm(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = signal.signal
    with StopRequest() as stop:

        def restore_and_interrupt(number: int, handler: object) -> object:
            monkeypatch.undo()  # only once
            send(signal.SIGTERM)
            return original(number, handler)  # type: ignore[arg-type]

        monkeypatch.setattr(signal, "signal", restore_and_interrupt)
        send(signal.SIGTERM)
        assert stop.requested
    for number in STOP_SIGNALS:
        send(number)
    assert received == list(STOP_SIGNALS)
