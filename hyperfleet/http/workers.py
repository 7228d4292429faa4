"""Several processes that serve together: one is started for each, and again when it dies.

Each has a listening socket of its own on the one port, between which the kernel spreads connections.
They are kept by the first process, so that what has connected to a dead worker's is answered by the
next one.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

logger = logging.getLogger(__name__)

# What is passed on to every worker.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHED = (*FORWARDED, signal.SIGCHLD)
# A worker that lived no longer than this many seconds is replaced after a pause as long.
SHORT = 1.0
# Seconds beyond those that workers take to end by themselves, after which they are made to.
GRACE = 5


class Worker(NamedTuple):
    """A process that serves: its number, and when it was started."""

    number: int
    started: float


class Workers:
    """Runs so many workers until it is told to stop.

    :param count: how many
    :param work: what each does in its process, by its number, until it is told to stop; the descriptor
        that it is given is at its end once the first process is gone
    :param patience: seconds that they may take to stop
    """

    def __init__(self, count: int, work: Callable[[int, int], None], patience: float) -> None:
        self.count = count
        self.work = work
        self.patience = patience
        self.running: dict[int, Worker] = {}
        self.restarts = 0

    def run(self) -> None:
        """Returns when all workers have ended after the signal to stop."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        alive, self.alive = os.pipe()
        self.watched = alive
        for number in range(self.count):
            self._start(number)
        deadline = float("inf")
        waiting: list[tuple[float, int]] = []
        while self.running or (waiting and deadline == float("inf")):
            found = signal.sigtimedwait(WATCHED, 0.5 if waiting or deadline < float("inf") else 60)
            now = time.monotonic()
            if found and found.si_signo in FORWARDED:
                self._tell(found.si_signo)
                if found.si_signo != signal.SIGHUP:
                    deadline = min(deadline, now + self.patience + GRACE)
            if now > deadline:
                self._tell(signal.SIGKILL)
            for worker in self._ended():
                if deadline < float("inf"):
                    continue
                pause = SHORT if now - worker.started < SHORT else 0
                waiting.append((now + pause, worker.number))
            if deadline == float("inf"):
                for _, number in [one for one in waiting if one[0] <= now]:
                    self._start(number)
                waiting = [one for one in waiting if one[0] > now]

    def _start(self, number: int) -> None:
        # What is waiting to be written would be written by both.
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self.running[pid] = Worker(number, time.monotonic())
            return
        status = 1
        try:
            os.close(self.alive)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
            self.work(number, self.watched)
            status = 0
        except BaseException:
            logger.exception("worker %d failed", number)
        finally:
            # Nothing of the first process is undone here, such as its database.
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(status)

    def _tell(self, number: int) -> None:
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _ended(self) -> list[Worker]:
        ended = []
        for pid in list(self.running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                worker = self.running.pop(pid)
                ended.append(worker)
                code = os.waitstatus_to_exitcode(status)
                if code:
                    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
                    self.restarts += 1
                    logger.error("worker %d, process %d, has ended %s", worker.number, pid, how)
        return ended


def shared(listener: socket.socket, count: int) -> list[socket.socket]:
    """So many listening sockets on the port of the first, which is closed; the kernel spreads
    connections between them.

    Raises OSError when another has taken the port meanwhile.
    """
    host, port, *_ = listener.getsockname()
    family = listener.family
    listener.close()
    return [
        socket.create_server((host, port), family=family, backlog=2048, reuse_port=True)
        for _ in range(count)
    ]
