"""The load on a service, and what is measured: rates, latencies, CPU time and memory.

wrk sends the requests. It shares the machine with the service and PostgreSQL, so compare figures only
within a run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import click
import psycopg
import requests

BASE = "/api/hyperfleet/v1"
ADAPTERS = ("dns", "validation", "pull-secret", "hypershift")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

REPORT = {
    "adapter": "dns",
    "observed_generation": 1,
    "observed_time": "NOW",
    "conditions": [
        {"type": kind, "status": "True", "reason": "Fine", "message": "All is well"}
        for kind in ("Available", "Applied", "Health")
    ],
    "data": {"zone": "example.com", "records": 12},
}
# 1.7 kB, like the specs of real clusters.
SPEC = {
    "region": "europe-west1",
    "release": {"version": "4.17.3", "channel": "stable"},
    "nodes": [
        {"name": f"pool-{n}", "type": "n2-standard-8", "replicas": n, "labels": {"role": "worker"}}
        for n in range(16)
    ],
    "networking": {"pod": "10.128.0.0/14", "service": "172.30.0.0/16", "host": 23},
}

LUA = """
local ids = {IDS}
local count = 0
function init() math.randomseed(SEED) count = SEED * 100000 end
function request()
  local id = ids[math.random(#ids)]
  count = count + 1
  local path, body = string.gsub("PATH", "ID", id), string.gsub([==[BODY]==], "COUNT", count)
  body = string.gsub(body, "NOW", os.date("!%Y-%m-%dT%H:%M:%SZ"))
  return wrk.format("METHOD", path, HEADERS, body)
end
"""


class Operation(NamedTuple):
    """A request to repeat. ID stands for a cluster's id, COUNT for a new number, NOW for the time."""

    path: str
    method: str = "GET"
    body: Any = None
    headers: Mapping[str, str] = {}


class Measured(NamedTuple):
    """Requests per second; percentiles of the latency in milliseconds; CPU time per request in
    microseconds, of the service and of the database, if their processes are known; memory in MB at the
    end, of the service's largest process; the number of requests that failed.
    """

    rate: float
    p50: float
    p99: float
    service: float
    database: float
    memory: float
    failed: int


@dataclass
class Target:
    """A service to measure.

    :param process: the id of its first process; 0 means that its processes are not known
    :param database: the same for PostgreSQL
    :param ids: ids of its resources
    :param size: its query parameter for the size of a page
    :param report: the method for reports
    :param segment: the path segment of the measured resources: clusters, or a declared kind's plural
    """

    url: str
    process: int = 0
    database: int = 0
    token: str = ""
    ids: list[str] = field(default_factory=list)
    size: str = "size"
    report: str = "PUT"
    segment: str = "clusters"

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def operations(self) -> dict[str, Operation]:
        """Returns all operations by name."""
        clusters = f"{BASE}/{self.segment}"
        some, kind = f"{clusters}?{self.size}=", self.segment.removesuffix("s").capitalize()
        name = quote("name='cluster-77'")
        label, condition = quote("labels.team='t3'"), quote("status.conditions.Ready='True'")
        return {
            "compatibility": Operation(f"{BASE}/compatibility"),
            "get one": Operation(f"{clusters}/ID"),
            "not changed": Operation(f"{clusters}/ID", headers={"If-None-Match": "*"}),
            "404": Operation(f"{clusters}/00000000-0000-7000-8000-000000000000"),
            "list 20": Operation(f"{some}20"),
            "list 100": Operation(f"{some}100"),
            "list 100, gzip": Operation(f"{some}100", headers={"Accept-Encoding": "gzip"}),
            "search by name": Operation(f"{clusters}?search={name}"),
            "list 100 by label": Operation(f"{some}100&search={label}"),
            "list 100 by condition": Operation(f"{some}100&search={condition}"),
            "node pools": Operation(f"{clusters}/ID/nodepools"),
            "report": Operation(f"{clusters}/ID/statuses", self.report, REPORT),
            "create": Operation(clusters, "POST", {"name": "b-COUNT", "kind": kind, "spec": SPEC}),
            "patch": Operation(f"{clusters}/ID", "PATCH", {"labels": {"team": "t3", "n": "COUNT"}}),
        }

    def fill(self, rows: int) -> None:
        """Creates clusters with four labels and four reports each, unless an earlier run has left as
        many. Finds out which generation of clients the service supports.
        """
        session = requests.Session()
        session.headers.update(self.headers)
        clusters = f"{self.url}{BASE}/clusters"
        found = session.get(clusters, params={"pageSize": 2, "orderBy": "name asc"}, timeout=30).json()
        if found["total"] >= rows:
            sizes = {"size": 100, "pageSize": 100}
            for page in range(1, 11):
                items = session.get(clusters, params={**sizes, "page": page}, timeout=30).json()["items"]
                self.ids += [one["id"] for one in items]
        for number in range(rows if not self.ids else 0):
            labels = {"team": f"t{number % 10}", "region": f"r{number % 3}", "n": str(number), "x": "y"}
            body = {"name": f"cluster-{number}", "kind": "Cluster", "labels": labels, "spec": SPEC}
            created = session.post(clusters, json=body, timeout=30)
            created.raise_for_status()
            self.ids.append(created.json()["id"])
            for adapter in ADAPTERS:
                self._report(session, number, adapter)
        two = session.get(clusters, params={"pageSize": 1}, timeout=30).json()["items"]
        self.size = "pageSize" if len(two) == 1 else "size"

    def _report(self, session: requests.Session, number: int, adapter: str) -> None:
        status, now = (
            "True" if number % 2 else "False",
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        conditions = [{**one, "status": status} for one in REPORT["conditions"]]  # type: ignore[attr-defined]
        report = {**REPORT, "adapter": adapter, "conditions": conditions, "observed_time": now}
        where = f"{self.url}{BASE}/clusters/{self.ids[-1]}/statuses"
        answer = session.request(self.report, where, json=report, timeout=30)
        if answer.status_code == 405:
            self.report = "POST"
            answer = session.post(where, json=report, timeout=30)
        answer.raise_for_status()

    def measure(self, name: str, clients: int, seconds: float) -> Measured:
        """Measures an operation by name; see :func:`measure`."""
        return measure(self, self.operations()[name], clients, seconds)


def family(root: int) -> Iterator[tuple[int, list[str]]]:
    """Yields a process and its descendants: id, and the fields of /proc/PID/stat from the state on."""
    stats = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats[int(stat.parent.name)] = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if one in stats:
            yield one, stats.pop(one)
        waiting += [pid for pid, fields in stats.items() if int(fields[1]) == one]


def seconds_of(root: int) -> float:
    """Returns the CPU time in seconds that a process and its descendants have used."""
    return sum(int(fields[11]) + int(fields[12]) for _, fields in family(root)) / TICKS


def memory_of(root: int) -> float:
    """Returns the resident memory in MB of the largest of a process and its descendants."""
    return max((int(fields[21]) for _, fields in family(root)), default=0) * PAGE / 1e6


def measure(target: Target, one: Operation, clients: int, seconds: float) -> Measured:
    """Lets wrk send an operation for this many seconds, at least one; returns what it measured."""
    script = LUA.replace("IDS", ",".join(f'"{id_}"' for id_ in target.ids[:1000] or [""]))
    headers = {**target.headers, **one.headers}
    if one.body:
        headers["Content-Type"] = "application/json"
    table = "{" + ",".join(f'["{name}"]="{value}"' for name, value in headers.items()) + "}"
    body = json.dumps(one.body) if one.body else ""
    script = script.replace("METHOD", one.method).replace("PATH", one.path)
    # For names that no earlier run has used.
    seed = str(int(time.time() * 10) % 1_000_000_000)
    script = script.replace("HEADERS", table).replace("BODY", body).replace("SEED", seed)
    roots = (target.process, target.database)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before = [seconds_of(root) for root in roots]
        said = subprocess.run(
            [
                *("wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s"),
                *("--latency", "-s", file.name, target.url),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        spent = [seconds_of(root) - start for root, start in zip(roots, before, strict=True)]
    total = int(re.search(r"(\d+) requests in", said)[1]) or 1  # type: ignore[index]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    return Measured(
        float(re.search(r"Requests/sec: +([\d.]+)", said)[1]),  # type: ignore[index]
        _milliseconds(said, "50%"),
        _milliseconds(said, "99%"),
        spent[0] / total * 1e6,
        spent[1] / total * 1e6,
        memory_of(target.process),
        int(failed[1]) if failed else 0,
    )


def _milliseconds(said: str, share: str) -> float:
    # wrk writes a blank after seconds.
    found = re.search(rf"^ +{share} +([\d.]+)(us|ms|s) *$", said, re.MULTILINE)
    assert found, said
    return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000}[found[2]]


def needs_wrk() -> None:
    """Raises ClickException if wrk is missing."""
    if not shutil.which("wrk"):
        raise click.ClickException("wrk is not installed; on Debian, the package has the same name.")


def postmaster(conninfo: str) -> int:
    """Returns the process id of an embedded PostgreSQL's postmaster."""
    with psycopg.connect(conninfo) as conn:
        row = conn.execute("SHOW data_directory").fetchone()
    assert row is not None
    return int((Path(row[0]) / "postmaster.pid").read_text().split()[0])


@contextmanager
def served(
    conninfo: str, workers: int, keys: str = "", token: str = "", more: Sequence[str] = ()
) -> Iterator[Target]:
    """Yields a running service.

    :param workers: how many; 0 means the service's default
    :param keys: the file of a key set; if given, the service requires tokens that it verifies
    :param token: such a token, for the requests
    :param more: more arguments
    """
    access = ["--jwk-cert-file", keys, "--jwk-cert-url=", "--any-caller"] if keys else ["--no-auth"]
    arguments = [*access, "--log-format=text", "--database-url", conninfo, *more]
    arguments += [f"--required-adapters-cluster={','.join(ADAPTERS)}"]
    arguments += [f"--{name}=0" for name in ("port", "health-port", "metrics-port")]
    if workers:
        arguments.append(f"--workers={workers}")
    # Not a pipe, which would have to be read.
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "hyperfleet", "serve", *arguments],
            stdout=log,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (found := re.search(r"^  API +(\S+)", Path(log.name).read_text(), re.MULTILINE)):
                assert process.poll() is None, "the service did not start"
                time.sleep(0.1)
            time.sleep(1)
            url = found[1].removesuffix(BASE).replace("0.0.0.0", "127.0.0.1")
            yield Target(url, process.pid, postmaster(conninfo), token)
        finally:
            process.terminate()
            process.wait()


def token(folder: str) -> tuple[str, str]:
    """Returns the path of a key set, and a token that it verifies."""
    made = [Path(sys.executable).parent / "hyperfleet", "token", "--dir", folder]
    said = subprocess.run(made, capture_output=True, text=True, check=True).stdout.strip()
    return str(Path(folder) / "jwks.json"), said
