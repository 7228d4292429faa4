"""`hyperfleet` as a separate process, as users start it."""

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

from click.testing import CliRunner
from warm import Started, possible

from hyperfleet import kinds
from hyperfleet.cli import main

HYPERFLEET = str(Path(sys.executable).parent / "hyperfleet")

# Where tests keep databases: in memory if there is enough, since a copy of the template has some three
# hundred files.
_SHM = Path("/dev/shm")
MEMORY = str(_SHM) if os.access(_SHM, os.W_OK) and shutil.disk_usage(_SHM).free > 4 << 30 else None

# Waits until the process that made the folder ends, then half a second as many times as given for a
# server in it to end, and ends it otherwise.
REMOVE = """
read -r _
for _ in $(seq "$1"); do [ -e "$0/postgresql/postmaster.pid" ] && sleep 0.5; done
pid=$(head -n 1 "$0/postgresql/postmaster.pid" 2>/dev/null)
[ -n "$pid" ] && [ "/proc/$pid/cwd" -ef "$0/postgresql" ] && kill -QUIT "$pid" && sleep 1
rm -rf "$0"
"""


@contextmanager
def server_folder(place: Path | str | None = MEMORY, *, watched: bool = True) -> Iterator[Path]:
    """Yields a folder for the files of a server, which is removed even if this process is killed.

    :param watched: whether the server then ends by itself
    """
    made = tempfile.mkdtemp(prefix="hyperfleet-", dir=place)
    remover = subprocess.Popen(
        ["/bin/sh", "-c", REMOVE, made, "60" if watched else "0"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        remover.communicate()


def free_port() -> int:
    """Returns a free port, below those that the kernel assigns to outgoing connections.

    One of these may be taken before anything listens there.
    """
    while True:
        port = SystemRandom().randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


# How many processes serve unless a test says so: TEST_WORKERS=2 shows that two work as well as one.
WORKERS = os.environ.get("TEST_WORKERS", "1")

# A developer's environment must not decide whether a test passes. Local connections use no proxy.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = ",".join(["localhost", "127.0.0.1", "::1", *filter(None, [os.environ.get(name)])])
CLEAN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("HYPERFLEET_", "PG")) and key != "OPENAPI_SCHEMA_PATH"
}


class Serving:
    """A running `hyperfleet serve`; it uses free ports unless the arguments say otherwise."""

    def __init__(
        self,
        *arguments: str,
        command: str | None = None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        wait: float = 60,
    ) -> None:
        ports = [f"--{name}=0" for name in ("port", "health-port", "metrics-port")]
        given = {"HYPERFLEET_LOG_FORMAT": "text", "HYPERFLEET_WORKERS": WORKERS, **(env or {})}
        self.process = start("serve", *ports, *arguments, command=command, cwd=cwd, env=given)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and self.process.poll() is None:
            if re.search(r'^  (Access|Data) |"access":', self.output, re.MULTILINE):
                break
            time.sleep(0.01)
        else:
            self.process.kill()
            raise AssertionError(f"did not start:\n{self.output}")
        self.url = self.address("API").removesuffix("/api/hyperfleet/v1")
        self.health = self.address("Health").removesuffix("/healthcheck")
        self.metrics = self.address("Metrics")

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def says(self, text: str) -> bool:
        """Returns whether the output contains this, or soon does: responses may precede log lines."""
        deadline = time.monotonic() + 5
        while text not in self.output and time.monotonic() < deadline:
            time.sleep(0.01)
        return text in self.output

    def address(self, name: str) -> str:
        found = re.search(rf"^  {name} +(\S+)", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
            self.reader.join(5)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()


def start(
    *arguments: str,
    command: str | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> "subprocess.Popen[str] | Started":
    """Starts `hyperfleet` with stdout and stderr combined, in a new interpreter if that is needed."""
    given = {**CLEAN, "PYTHONUNBUFFERED": "1", **(env or {})}
    if command is None and possible(given):
        return Started([HYPERFLEET, *arguments], given, cwd)
    return subprocess.Popen(
        [command or HYPERFLEET, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=given,
    )


class Ended(NamedTuple):
    """The outcome of a command."""

    returncode: int
    stdout: str


def run(
    *arguments: str,
    command: str | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Ended:
    """Runs `hyperfleet` to its end; returns stdout and stderr combined."""
    process = start(*arguments, command=command, cwd=cwd, env=env)
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        assert process.stdout
        with process.stdout as output:
            told = output.read()
        return Ended(process.wait(), told)
    finally:
        timer.cancel()


def run_here(*arguments: str, env: dict[str, str] | None = None) -> Ended:
    """Runs the command in this process, which is faster than a separate one."""
    unset = {key: None for key in os.environ if key not in CLEAN}
    known = [*kinds.RESOURCES.values()]
    # A server of this process may log its last request late, into the output of the command.
    requested = logging.getLogger("hyperfleet.request")
    requested.disabled = True
    try:
        result = CliRunner().invoke(main, arguments, env={**unset, **(env or {})})
    finally:
        requested.disabled = False
        # The kinds that it has declared must not affect later tests.
        kinds.declare(known)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return Ended(result.exit_code, result.output)
