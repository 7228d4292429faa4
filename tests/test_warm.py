"""Services that tests start by forking are like those that users start."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests
from process import HYPERFLEET, Serving
from warm import POSSIBLE, Started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="here, each service starts its own interpreter"),
]


def state(serving: Serving) -> dict[str, object]:
    """Returns what the kernel knows of this process alone."""
    place = Path(f"/proc/{serving.process.pid}")
    masks = re.findall(r"^(Sig(?:Blk|Ign|Cgt)):\s+(\w+)$", (place / "status").read_text(), re.MULTILINE)
    files = []
    for one in (place / "fd").iterdir():
        with suppress(FileNotFoundError):
            files.append(str(one.readlink()))
    return {
        **dict(masks),
        "folder": (place / "cwd").readlink(),
        # The numbers of connections and threads depend on what else the machine does.
        "descriptors": {re.sub(r"metrics-[^/]+|\d+", "-", one) for one in files},
        "group": os.getpgid(serving.process.pid),
    }


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_forked_service_is_like_one_with_its_own_interpreter(
    database: str, tmp_path: Path, workers: str
) -> None:
    arguments = ("--no-auth", f"--workers={workers}", "--database-url", database)
    env = {"HYPERFLEET_LOG_LEVEL": "debug"}
    with (
        Serving(*arguments, cwd=tmp_path, env=env) as forked,
        Serving(*arguments, cwd=tmp_path, env=env, command=HYPERFLEET) as own,
    ):
        assert isinstance(forked.process, Started)
        for one in (forked, own):
            assert requests.get(f"{one.health}/readyz", timeout=5).status_code == 200
        # Connections and threads come and go for a moment.
        deadline = time.monotonic() + 10
        while (found := state(forked)) != (wanted := state(own)):
            assert time.monotonic() < deadline, (found, wanted)
            time.sleep(0.05)
        told = [requests.get(one.metrics, timeout=5) for one in (forked, own)]
        assert [one.status_code for one in told] == [200, 200]
        first, second = ({line for line in one.text.splitlines() if line[0] == "#"} for one in told)
        assert first == second
        assert forked.stop(signal.SIGINT) == own.stop(signal.SIGINT) == 0


PYTEST = """
import sys
from own_server import own_server, standby
from process import Serving, server_folder
with server_folder() as files, own_server() as server, standby(server) as other:
    serving = Serving("--no-auth", "--database-url", sys.argv[1])
    print(serving.process.pid, files, server.files.parent, other, flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left_running_if_pytest_is_killed(database: str, root: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", PYTEST, database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root / 'tests'}:{root}"},
    )
    assert killed.stdout
    with killed.stdout as output:
        pid, *folders = output.readline().split()
    service = psutil.Process(int(pid))
    processes = [service, service.parent()]
    assert psutil.Process(killed.pid) in processes[1].parents()
    for folder in folders[1:]:
        first = Path(folder, "postgresql", "postmaster.pid").read_text().split()[0]
        processes.append(psutil.Process(int(first)))
    killed.kill()
    killed.wait(10)
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    deadline = time.monotonic() + 60
    while any(Path(folder).exists() for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.02)
