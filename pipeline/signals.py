"""Signals that ask a run to stop: the first is noted, a second one stops at once."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A context in which SIGTERM, SIGINT and SIGUSR1 (SLURM's warning) only set `requested`.

    The run looks at it between iterations, saves its state and ends. The handlers that were there
    before come back after the first signal, so that a second one has its usual effect at once.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return bool(self.signal_name)

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        # One by one, because another signal may come, and restore the rest, in the midst of this.
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]
