"""Signals that ask a run to stop: the first is noted, a second one stops at once.

What `heed_parent` gets from the process that started this one never counts as a second.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
RESEND_S = 0.01
PARENT_PIPE = "PIPELINE_PARENT_PIPE"  # in the environment: the descriptor of a pipe to read from
GRACE_S = 0.5  # more than lies between a scheduler's signals to the processes of a job

_first_has_come = False  # of the process, as its handlers are


class Interrupted(KeyboardInterrupt):
    """A signal ends the command: temporary files are removed on its way, and nobody holds it up.

    Like Ctrl-C, which it stands for too, it is no `Exception`.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name


def _note_first() -> None:
    global _first_has_come
    _first_has_come = True


@contextmanager
def raised_signals() -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGUSR1 raise `Interrupted`, so that what was begun is cleaned up.

    By default SIGTERM ends a process on the spot, and its temporary folders and children stay. A
    second signal still has that effect. What the caller ignores stays ignored (`nohup`, jobs in
    the background). In a thread other than the main one, Python allows no handlers: nothing is
    changed.

    Python drops what is raised in a destructor or a weak reference's callback, and a handler may be
    called there: the signal is then sent once more.
    """
    main_thread = threading.main_thread()
    if threading.current_thread() is not main_thread:
        yield
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = [number for number in STOP_SIGNALS if previous[number] is not signal.SIG_IGN]

    def restore() -> None:
        for number in handled:
            signal.signal(number, previous[number])

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        _note_first()
        restore()
        raise Interrupted(signal.Signals(number).name)

    def handle() -> None:
        for number in handled:
            signal.signal(number, interrupt)

    def send_again(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, Interrupted):
            handle()
            # From a thread and a moment later: raised within this hook, it would be dropped again.
            number = signal.Signals[dropped.exc_value.signal_name]
            timer = threading.Timer(RESEND_S, signal.pthread_kill, [main_thread.ident, number])
            timers.callback(timer.cancel)
            timer.start()
        else:
            hook(dropped)

    hook, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        with ExitStack() as timers:
            handle()
            yield
    finally:
        restore()
        sys.unraisablehook = hook


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
        _note_first()
        self.signal_name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        # One by one, because another signal may come, and restore the rest, in the midst of this.
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]


def heed_parent() -> None:
    """Let the process that started this one stop it, without making two requests of one.

    Ctrl-C and many schedulers signal all processes of a job. A parent that passed its signal on as
    one would ask twice then, and nobody would save a state. So it writes the number of the signal
    into a pipe, and here it is sent only where none has come by itself. Where the parent is gone,
    which closes the pipe, it is SIGTERM: nobody would use what goes on.
    """
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is not None:
        threading.Thread(target=_follow, args=(int(descriptor),), daemon=True).start()


def _follow(descriptor: int) -> None:
    told = os.read(descriptor, 1)
    time.sleep(GRACE_S)
    if not _first_has_come:
        # One that has come, but waits for the end of a long operation in C, is the same number.
        os.kill(os.getpid(), told[0] if told else signal.SIGTERM)
