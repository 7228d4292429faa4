"""Three PostgreSQL servers under Patroni, with an etcd, each on a machine of its own.

A machine is a network namespace; a bridge connects them. This requires root. A shell removes everything
when the block ends, and also if the process that made it is killed.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml
from process import MEMORY

from hyperfleet.database import embedded

# Where Debian puts programs for root.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
NEEDED = ("patroni", "etcd", "ip", "setpriv")

# In a range that is reserved for benchmarks between networks.
NET = f"198.18.{os.getpid() % 250}"

PARAMETERS = {"wal_log_hints": "on", "wal_retrieve_retry_interval": "1s"}
# The smallest values that Patroni accepts, so that failures are noticed as early as possible. With
# `synchronous_mode_strict`, a primary without a standby acknowledges nothing.
DYNAMIC: dict[str, Any] = {
    "ttl": 20,
    "loop_wait": 1,
    "retry_timeout": 3,
    "primary_start_timeout": 0,
    "synchronous_mode": True,
    "synchronous_mode_strict": True,
    "postgresql": {"use_pg_rewind": True, "parameters": PARAMETERS},
}

REPLICATOR = {"username": "replicator"}
LEADING = (("master", "running"), ("primary", "running"))  # as Patroni 3 and as Patroni 4 has it

# Reads until the test closes its end of the pipe, as the kernel does if it is killed. Links are removed
# by name, since a namespace outlives its name while one of its sockets is still closing.
TAKE_DOWN = """
trap '' INT TERM
read -r _
for name in $1; do
    ip netns pids "$name" | xargs -r kill -KILL
    ip netns delete "$name"
    ip link delete "$name"
done
ip link delete "$2"
rm -rf "$3"
"""


def missing() -> str:
    """Returns why no cluster can be made on this machine; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [program for program in NEEDED if not shutil.which(program, path=PATH)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    name = f"hf{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], env=ENVIRONMENT, check=False).returncode:
        return "network namespaces are not permitted"
    _ip("netns", "delete", name)
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], env=ENVIRONMENT, check=True, timeout=10)


class Machine:
    """A network namespace with one address."""

    def __init__(self, bridge: str, number: int, folder: Path, user: str) -> None:
        self.name, self.number = f"{bridge}-{number}", number
        self.folder, self.user = folder / str(number), user
        self.address = f"{NET}.{10 + number}"
        self.folder.mkdir(mode=0o700)
        shutil.chown(self.folder, user)
        _ip("netns", "add", self.name)
        _ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self.name, "master", bridge, "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.name, "link", "set", device, "up")

    def run(self, *command: str) -> None:
        """Starts a program on the machine, as PostgreSQL's user."""
        user = ["setpriv", "--reuid", self.user, "--regid", self.user, "--init-groups"]
        inside = ["ip", "netns", "exec", self.name, *user, *command]
        with (self.folder / "log").open("a") as log:
            subprocess.Popen(
                inside, cwd=self.folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """Kills all its processes at once, as when the machine dies."""
        script = 'ip netns pids "$0" | xargs -r kill -KILL'
        subprocess.run(["sh", "-c", script, self.name], env=ENVIRONMENT, check=False)

    def unplug(self) -> None:
        """Cuts the machine off from the network."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        """Reverts :meth:`unplug` and :meth:`part`."""
        _ip("link", "set", self.name, "up")
        _ip("-n", self.name, "route", "flush", "type", "blackhole")

    def part(self, *others: "Machine") -> None:
        """Stops the machine from sending to the others; all others can still send to it."""
        for other in others:
            _ip("-n", self.name, "route", "add", "blackhole", f"{other.address}/32")


class Keeper(Machine):
    """An etcd."""

    @property
    def etcd(self) -> str:
        return f"{self.address}:2379"

    def start(self) -> None:
        urls = [f"--{name}-client-urls=http://{self.etcd}" for name in ("listen", "advertise")]
        self.run("etcd", "--data-dir", str(self.folder / "data"), *urls)


class Node(Machine):
    """A PostgreSQL under Patroni."""

    def configure(self, etcd: str, bin_path: Path) -> None:
        config = {
            "scope": "fleet",
            "name": self.name,
            "restapi": {"listen": f"{self.address}:8008", "connect_address": f"{self.address}:8008"},
            "etcd3": {"host": etcd},
            "bootstrap": {
                "dcs": DYNAMIC,
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}],
                "pg_hba": ["local all all trust", "host all,replication all all trust"],
            },
            "postgresql": {
                "listen": f"{self.address}:5432",
                "connect_address": f"{self.address}:5432",
                "data_dir": str(self.folder / "data"),
                "bin_dir": str(bin_path),
                "use_unix_socket": True,
                "pgpass": str(self.folder / "pgpass"),
                "parameters": {"unix_socket_directories": str(self.folder)},
                "authentication": {"superuser": {"username": "postgres"}, "replication": REPLICATOR},
            },
        }
        (self.folder / "patroni.yml").write_text(yaml.safe_dump(config))

    def start(self) -> None:
        self.run("patroni", str(self.folder / "patroni.yml"))

    def ask(self, path: str) -> dict[str, Any]:
        """Returns the response of its Patroni; empty without one."""
        try:
            return requests.get(f"http://{self.address}:8008{path}", timeout=1).json()  # type: ignore[no-any-return]
        except requests.RequestException:
            return {}


class Cluster:
    """The nodes, and the database URL for the service."""

    def __init__(self, keeper: Keeper, nodes: list[Node]) -> None:
        self.keeper, self.nodes = keeper, nodes
        hosts = ",".join(f"{node.address}:5432" for node in nodes)
        self.url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def primary(self) -> Node:
        """Waits for a node that is the primary."""
        return until(self.leader, 60)

    def leader(self) -> Node | None:
        """Returns the node that says that it is the primary, if one can be reached."""
        for node in self.nodes:
            told = node.ask("/patroni")
            if (told.get("role"), told.get("state")) in LEADING:
                return node
        return None

    def whole(self) -> None:
        """Waits until all nodes follow the primary, one of them synchronously."""

        def is_whole() -> bool:
            leader = self.primary()
            # What PostgreSQL does, and what etcd knows of it, which is what a failover relies on.
            streams = leader.ask("/patroni").get("replication", [])
            roles = [one["role"] for one in leader.ask("/cluster").get("members", [])]
            return len(streams) == len(self.nodes) - 1 and "sync_standby" in roles

        until(is_whole, 60)

    def switch_over(self) -> None:
        """Asks Patroni to make another node the primary."""
        leader = self.primary()
        url = f"http://{leader.address}:8008/switchover"
        requests.post(url, json={"leader": leader.name}, timeout=60).raise_for_status()

    def part(self, node: Node) -> None:
        """Cuts a node off from etcd and the other nodes, but not from clients.

        This is the harder case: they may continue to write to a primary that no longer is one.
        """
        node.part(self.keeper, *(one for one in self.nodes if one is not node))


def until(found: Any, seconds: float) -> Any:
    """Waits until a function returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return value


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Yields a cluster with all nodes running; see :func:`missing`."""
    folder = Path(tempfile.mkdtemp(prefix="hyperfleet-", dir=MEMORY))
    folder.chmod(0o755)
    made = embedded._server(folder)
    bridge = f"hf{os.getpid()}"
    names = [f"{bridge}-{number}" for number in range(4)]
    take_down = subprocess.Popen(
        ["sh", "-c", TAKE_DOWN, "sh", " ".join(names), bridge, str(folder)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{NET}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        keeper = Keeper(bridge, 0, folder, made.system_user)
        keeper.start()
        nodes = [Node(bridge, number, folder, made.system_user) for number in (1, 2, 3)]
        for node in nodes:
            node.configure(keeper.etcd, made.bin_path)
            node.start()
        running = Cluster(keeper, nodes)
        running.whole()
        yield running
    finally:
        take_down.communicate(timeout=60)
