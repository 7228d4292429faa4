"""Several processes that serve together; each one that dies is replaced.

Each has its own listening socket on the one port, and the kernel spreads connections over them. The
first process keeps the sockets open, so connections to a dead worker's are answered by its successor.
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

# Signals that are passed on to every worker.
STOP = (signal.SIGTERM, signal.SIGINT)
OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FORWARDED = (*STOP, *OTHERS)
WATCHED = (*FORWARDED, signal.SIGCHLD)
# Seconds to wait before replacing a worker that has lived no longer than this.
PAUSE = 1.0
# Seconds between checks, if no signal comes earlier.
TICK = 0.5
# Seconds that workers get beyond their own time to stop, before they are killed.
GRACE = 5


class Worker(NamedTuple):
    """A worker process: its number, and when it was started by the monotonic clock."""

    number: int
    started: float


class Workers:
    """Runs one worker process per socket until told to stop.

    :param listeners: the sockets that they serve, one each
    :param work: serves its socket until told to stop; its second argument is a descriptor that reaches
        its end once the first process is gone
    :param ended: called with the pid of each worker that has ended, and whether it was told to
    :param follows: called in a new worker with the pid of the one that it replaces
    :param patience: seconds that workers may take to stop
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
        # The pid of the last worker of each number.
        self.last: dict[int, int] = {}
        # The numbers of workers to start, and when.
        self.wanted = dict.fromkeys(range(len(listeners)), 0.0)
        self.deadline: float | None = None
        # Whether workers were asked to reload.
        self.reloaded = False
        # Blocked signals are not lost, but pending until the process that they are for takes them.
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        for number in OTHERS:
            signal.signal(number, signal.SIG_DFL)

    def run(self) -> None:
        """Runs the workers; returns when all have ended after the signal to stop."""
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
                    # Workers that are started later inherit it.
                    log.change_level(log.STEPS[found.si_signo])
                if found.si_signo in STOP and self.deadline is None:
                    self.deadline = time.monotonic() + self.patience + GRACE
                    # From here on, each port is open for as long as its worker keeps it open.
                    for listener in self.listeners:
                        listener.close()
            self._bury()

    def _start(self, number: int) -> None:
        # Otherwise both processes would write what is buffered.
        for stream in (sys.stdout, sys.stderr):
            # This fails if the disk is full.
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
                # It has inherited what the first process read at its start; delivered once it serves.
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
            # Exits without cleaning up what belongs to the first process, such as its database.
            os._exit(status)

    def _tell(self, number: int) -> None:
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _bury(self) -> None:
        """Reaps workers that have ended, and schedules their replacement."""
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
    """Returns how many CPU cores this process may use, by affinity and the quota of its cgroup (v2)."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # There is no such group, or it has no quota.
        return bound
