"""Several processes that serve together: one is started for each, and again when it dies.

Each has a listening socket of its own on the one port, between which the kernel spreads connections.
They are kept by the first process, so that what has connected to a dead worker's is answered by the
next one.
"""

import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hyperfleet.observe import log

logger = logging.getLogger(__name__)

# What is passed on to every worker.
STOP = (signal.SIGTERM, signal.SIGINT)
OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FORWARDED = (*STOP, *OTHERS)
WATCHED = (*FORWARDED, signal.SIGCHLD)
# A worker that lived no longer than this many seconds is replaced after a pause as long.
PAUSE = 1.0
# Seconds between two looks, where no signal comes before.
TICK = 0.5
# Seconds beyond those that workers take to end by themselves, after which they are made to.
GRACE = 5


class Worker(NamedTuple):
    """A process that serves: its number, and when it was started."""

    number: int
    started: float


class Workers:
    """Runs so many workers until it is told to stop.

    :param listeners: the sockets that they serve from, one for each
    :param work: what a worker does with its socket until it is told to stop; the descriptor that it is
        given beside is at its end once the first process is gone
    :param ended: told the process of each worker that has ended, and whether it was wanted to
    :param follows: told the process that a new worker has taken the place of, in the new one
    :param patience: seconds that they may take to stop
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        work: Callable[[socket.socket, int], None],
        ended: Callable[[int, bool], None],
        follows: Callable[[int], None],
        patience: float,
    ) -> None:
        self.listeners = listeners
        self.work = work
        self.ended = ended
        self.follows = follows
        self.patience = patience
        self.running: dict[int, Worker] = {}
        # The process of the last worker of each number.
        self.last: dict[int, int] = {}
        # Those to be started, and when.
        self.wanted = dict.fromkeys(range(len(listeners)), 0.0)
        self.deadline: float | None = None
        # Whether workers were asked to read something anew.
        self.reloaded = False
        # None is lost from here on: they wait for whom they are meant for.
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        for number in OTHERS:
            signal.signal(number, signal.SIG_DFL)

    def run(self) -> None:
        """Returns when all workers have ended after the signal to stop."""
        self.watched, self.alive = os.pipe()
        while self.running or self.deadline is None:
            now = time.monotonic()
            if self.deadline is None:
                for number in [number for number, at in self.wanted.items() if at <= now]:
                    del self.wanted[number]
                    self._start(number)
            elif now > self.deadline:
                self._tell(signal.SIGKILL)
            found = signal.sigtimedwait(WATCHED, TICK)
            if found and found.si_signo in FORWARDED:
                self._tell(found.si_signo)
                self.reloaded = self.reloaded or found.si_signo == signal.SIGHUP
                if found.si_signo in log.STEPS:
                    # For the workers that are started later.
                    log.tell(log.STEPS[found.si_signo])
                if found.si_signo in STOP and self.deadline is None:
                    self.deadline = time.monotonic() + self.patience + GRACE
                    # From here on a port is open as long as its worker has it open.
                    for listener in self.listeners:
                        listener.close()
            self._bury()

    def _start(self, number: int) -> None:
        # What waits to be written would be written by both.
        for stream in (sys.stdout, sys.stderr):
            # To a disk that is full nothing can be written.
            with suppress(OSError):
                stream.flush()
        pid = os.fork()
        if pid:
            self.running[pid] = Worker(number, time.monotonic())
            self.last[number] = pid
            return
        status = 1
        try:
            os.close(self.alive)
            for other, listener in enumerate(self.listeners):
                if other != number:
                    listener.close()
            if number in self.last:
                self.follows(self.last[number])
            if self.reloaded:
                # It has what the first process read at its start; heard once it serves.
                os.kill(os.getpid(), signal.SIGHUP)
            self.work(self.listeners[number], self.watched)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            logger.exception("worker %d failed", number)
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            # Nothing of the first process is undone here, such as its database.
            os._exit(status)

    def _tell(self, number: int) -> None:
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _bury(self) -> None:
        """Looks which workers have ended, and wants them again."""
        for pid in list(self.running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            worker = self.running.pop(pid)
            self.ended(pid, self.deadline is not None)
            code = os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if self.deadline is None:
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
                logger.error("worker %d, process %d, has ended %s", worker.number, pid, how)
                self.wanted[worker.number] = now + (PAUSE if now - worker.started < PAUSE else 0)


def cores() -> int:
    """How many processor cores this process may use: those that it is bound to, and no more than the
    quota of its control group (cgroup v2, cpu.max) comes to.
    """
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # No such group, or one without a quota.
        return bound
