"""Verbs as processes of their own: one per device, signals passed on, failures told."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.cli import EXIT_CODES
from pipeline.errors import PipelineError, ResourceError, RunStopped
from pipeline.signals import PARENT_PIPE, StopRequest

LOG = logging.getLogger(__name__)
POLL_S = 0.05
ERRORS: dict[int, type[PipelineError]] = {int(code): error for error, code in EXIT_CODES.items()}
AGAIN = "Repeat the command to go on."


@dataclass(frozen=True)
class Command:
    """A verb with its arguments; `what` says in words what it does, `log` where it tells of it."""

    verb: str
    arguments: tuple[str, ...]
    what: str
    log: str = ""


Job: TypeAlias = Callable[[str], Sequence[Command]]
"""Commands that follow each other on the device that the job is given."""


def run_jobs(jobs: Sequence[Job], *, devices: Sequence[str]) -> None:
    """Run all jobs, as many at a time as there are devices, each command in its own process.

    A process ends with all the memory it took, and can have a GPU of its own. What it prints goes
    where this process prints. A signal is passed on, unless it has reached a process by itself, and
    waited for; a second one ends the processes without their state. If one fails, or this process
    is killed, the others are stopped with their state saved.

    Raises:
        RunStopped: A signal asked for it, here or in a process.
        PipelineError: Of the kind that a process ended with, which it has told itself.
    """
    waiting = iter(jobs)
    several = len(devices) > 1 and len(jobs) > 1
    lanes = [
        _Lane(_commands(waiting, device), position=number if several else None)
        for number, device in enumerate(devices)
    ]
    with StopRequest() as stop:
        try:
            running = lanes
            while running and not stop.requested:
                running = [lane for lane in running if lane.goes_on()]
                time.sleep(POLL_S)
            if stop.requested:
                _stop(lanes, stop.signal_name)
        finally:
            for lane in lanes:
                lane.send(signal.SIGTERM)
            for lane in lanes:
                lane.wait()


def _commands(waiting: Iterator[Job], device: str) -> Iterator[Command]:
    """Yield the commands of the jobs that this device takes, each from those nobody has taken."""
    for job in waiting:
        yield from job(device)


class _Lane:
    """One device: its commands, one after the other."""

    def __init__(self, commands: Iterator[Command], *, position: int | None) -> None:
        self._commands = commands
        self._current: tuple[Command, subprocess.Popen[bytes]] | None = None
        self._pipe: int | None = None  # where the current process looks for requests to stop
        # Several progress bars have a line each.
        self._environment = {} if position is None else {"TQDM_POSITION": str(position)}

    def goes_on(self) -> bool:
        """Look at the process; start the next one where it has ended. False: nothing is left."""
        if self._current is not None:
            command, process = self._current
            exit_code = process.poll()
            if exit_code is None:
                return True
            self._forget()
            _require_done(command, exit_code)
        following = next(self._commands, None)
        if following is None:
            return False
        LOG.info(following.what)
        reading, self._pipe = os.pipe()
        try:
            process = start(following, environment=self._environment, pipe=reading)
        finally:
            os.close(reading)
        self._current = following, process
        return True

    def pass_on(self, number: int) -> None:
        """Ask the process to stop as `number` asked this one, if there is one (`heed_parent`)."""
        if self._pipe is not None:
            with suppress(BrokenPipeError):  # it has just ended
                os.write(self._pipe, bytes([number]))

    def send(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self._current is not None:
            self._current[1].send_signal(number)

    def wait(self) -> None:
        """Wait for the process to end, if there is one."""
        while self._current is not None and self._current[1].poll() is None:
            time.sleep(POLL_S)
        self._forget()

    def _forget(self) -> None:
        self._current = None
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def start(command: Command, *, environment: dict[str, str], pipe: int) -> subprocess.Popen[bytes]:
    """Start a verb, which reads requests to stop from `pipe`.

    It is of the same group, so that whoever kills that leaves nothing behind.
    """
    return subprocess.Popen(  # noqa: S603 - our own command line, without a shell
        command_line(command),
        env={**os.environ, **environment, PARENT_PIPE: str(pipe)},
        pass_fds=(pipe,),
    )


def command_line(command: Command) -> list[str]:
    """Return the words that run a verb."""
    return [sys.executable, "-m", f"pipeline.{command.verb}", *command.arguments]


def _stop(lanes: Sequence[_Lane], name: str) -> None:
    LOG.info("%s: waiting for the state to be saved", name)
    for lane in lanes:
        lane.pass_on(signal.Signals[name])
    for lane in lanes:
        lane.wait()
    raise RunStopped(f"stopped by {name}; what is finished is kept. {AGAIN}")


def _require_done(command: Command, exit_code: int) -> None:
    if exit_code == 0:
        return
    log = f" Its log: {command.log}." if command.log else ""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        raise ResourceError(
            f"{command.what}: ended by {name}, as where memory runs out.{log} Free some memory and "
            "repeat the command to go on."
        )
    if exit_code not in ERRORS:
        raise RuntimeError(f"{command.what}: ended with code {exit_code}; see above.{log}")
    told = f"{command.what}: ended as told above.{log}"
    raise ERRORS[exit_code](f"{told} {AGAIN}" if ERRORS[exit_code] is RunStopped else told)
