"""How much the service does in a second, how long its clients wait, and what that costs.

    python -m benchmarks.load [--rows 3000] [--seconds 4] [--clients 1,8,32] [--workers 2] [--auth]

wrk sends; the service and an embedded PostgreSQL share the machine with it, so that figures of one run
can be compared with each other and with nothing else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import click
import psycopg
import requests

from hyperfleet.database import embedded, migration

BASE = "/api/hyperfleet/v1"
ADAPTERS = ("dns", "validation", "pull-secret", "hypershift")
TICKS = os.sysconf("SC_CLK_TCK")

REPORT = {
    "adapter": "dns",
    "observed_generation": 1,
    "conditions": [
        {"type": kind, "status": "True", "reason": "Fine", "message": "All is well"}
        for kind in ("Available", "Applied", "Health")
    ],
    "data": {"zone": "example.com", "records": 12},
}
# 1.7 kB, as the specs of real clusters have it.
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
  return wrk.format("METHOD", path, HEADERS, body)
end
"""


class Operation(NamedTuple):
    """What is asked again and again: ID stands for one of the clusters, COUNT for a new number."""

    path: str
    method: str = "GET"
    body: Any = None
    headers: Mapping[str, str] = {}


class Measured(NamedTuple):
    """Of a second: requests; of a request: milliseconds that half and 99 of 100 are below, and
    microseconds of the service's and the database's processors.
    """

    rate: float
    p50: float
    p99: float
    service: float
    database: float
    failed: int


def operations() -> dict[str, Operation]:
    """All that is measured, by name."""
    name = quote("name='cluster-77'")
    label, condition = quote("labels.team='t3'"), quote("status.conditions.Ready='True'")
    return {
        "compatibility": Operation(f"{BASE}/compatibility"),
        "get one": Operation(f"{BASE}/clusters/ID"),
        "list 20": Operation(f"{BASE}/clusters?size=20"),
        "list 100": Operation(f"{BASE}/clusters?size=100"),
        "search by name": Operation(f"{BASE}/clusters?search={name}"),
        "list 100 by label": Operation(f"{BASE}/clusters?search={label}"),
        "list 100 by condition": Operation(f"{BASE}/clusters?search={condition}"),
        "not changed": Operation(f"{BASE}/clusters/ID", headers={"If-None-Match": "*"}),
        "list 100, gzip": Operation(f"{BASE}/clusters?size=100", headers={"Accept-Encoding": "gzip"}),
        "node pools": Operation(f"{BASE}/clusters/ID/nodepools"),
        "404": Operation(f"{BASE}/clusters/00000000-0000-7000-8000-000000000000"),
        "report": Operation(f"{BASE}/clusters/ID/statuses", "PUT", REPORT),
        "create": Operation(f"{BASE}/clusters", "POST", {"name": "b-COUNT", "spec": SPEC}),
        "patch": Operation(f"{BASE}/clusters/ID", "PATCH", {"labels": {"team": "t3", "n": "COUNT"}}),
    }


def fill(url: str, rows: int, token: str = "") -> list[str]:
    """Makes clusters with four labels and four reports each; returns their ids."""
    session, ids = requests.Session(), []
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    for number in range(rows):
        labels = {"team": f"t{number % 10}", "region": f"r{number % 3}", "n": str(number), "x": "y"}
        body = {"name": f"cluster-{number}", "labels": labels, "spec": SPEC}
        created = session.post(f"{url}{BASE}/clusters", json=body, timeout=30)
        created.raise_for_status()
        ids.append(created.json()["id"])
        for adapter in ADAPTERS:
            status = "True" if number % 2 else "False"
            conditions = [{**one, "status": status} for one in REPORT["conditions"]]
            report = {**REPORT, "adapter": adapter, "conditions": conditions}
            session.put(f"{url}{BASE}/clusters/{ids[-1]}/statuses", json=report, timeout=30)
    return ids


def seconds_of(root: int) -> float:
    """Seconds of a processor that a process and all below it have taken."""
    parents, times = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], times[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    family, waiting = set(), [root]
    while waiting:
        one = waiting.pop()
        family.add(one)
        waiting += [pid for pid, parent in parents.items() if parent == one and pid not in family]
    return sum(times.get(pid, 0) for pid in family)


def measure(url: str, one: Operation, ids: list[str], roots: tuple[int, int], options: Any) -> Measured:
    """Lets wrk send one operation for some seconds."""
    script = LUA.replace("IDS", ",".join(f'"{id_}"' for id_ in ids[:1000]))
    headers = {"Content-Type": "application/json", **one.headers} if one.body else dict(one.headers)
    if options.get("token"):
        headers["Authorization"] = f"Bearer {options['token']}"
    table = "{" + ",".join(f'["{name}"]="{value}"' for name, value in headers.items()) + "}"
    body = json.dumps(one.body) if one.body else ""
    script = script.replace("METHOD", one.method).replace("PATH", one.path)
    # Names that no run before has used.
    seed = str(int(time.time() * 10) % 1_000_000_000)
    script = script.replace("HEADERS", table).replace("BODY", body).replace("SEED", seed)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before = [seconds_of(root) for root in roots]
        said = subprocess.run(
            [
                *("wrk", "-t1", f"-c{options['clients']}", f"-d{options['seconds']}s"),
                *("--latency", "-s", file.name, url),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        spent = [seconds_of(root) - start for root, start in zip(roots, before, strict=True)]
    total = int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    return Measured(
        float(re.search(r"Requests/sec: +([\d.]+)", said)[1]),  # type: ignore[index]
        _milliseconds(said, "50%"),
        _milliseconds(said, "99%"),
        spent[0] / total * 1e6,
        spent[1] / total * 1e6,
        int(failed[1]) if failed else 0,
    )


def _milliseconds(said: str, share: str) -> float:
    found = re.search(rf"^ +{share} +([\d.]+)(us|ms|s)$", said, re.MULTILINE)
    assert found, said
    return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000}[found[2]]


@contextmanager
def served(conninfo: str, workers: int, keys: str = "") -> Iterator[tuple[str, int]]:
    """A running service: its address and its process.

    :param keys: the file with the keys of tokens that it is to ask for
    """
    access = ["--jwk-cert-file", keys, "--jwk-cert-url="] if keys else ["--no-auth"]
    arguments = [*access, "--database-url", conninfo]
    arguments += [f"--required-adapters-cluster={','.join(ADAPTERS)}"]
    arguments += [f"--{name}=0" for name in ("port", "health-port", "metrics-port")]
    if workers:
        arguments.append(f"--workers={workers}")
    process = subprocess.Popen(
        [Path(sys.executable).parent / "hyperfleet", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        line = next(line for line in process.stdout if line.startswith("  API"))
        time.sleep(1)
        yield line.split()[1].removesuffix(BASE), process.pid
    finally:
        process.terminate()
        process.wait()


@click.command()
@click.option("--rows", default=3000, show_default=True, help="How many clusters.")
@click.option("--seconds", default=4, show_default=True, help="How long each thing is measured.")
@click.option("--clients", default="8", show_default=True, help="How many send at once, by comma.")
@click.option("--workers", default=0, help="Processes of the service; 0: as it chooses.")
@click.option("--auth", is_flag=True, help="Ask for tokens, and send one.")
@click.option("--only", default="", help="Names of operations, by comma.")
@click.option("--data", default="", help="Folder of a database that stays.")
@click.option("--json", "output", default="", help="File that the figures go to.")
def main(**options: Any) -> None:
    """Prints rates, waiting times and costs."""
    if not shutil.which("wrk"):
        raise click.ClickException("wrk is not there; Debian has a package of that name.")
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded.running(Path(options["data"] or folder)) as conninfo,
    ):
        migration.apply(conninfo)
        token = keys = ""
        if options["auth"]:
            made = [Path(sys.executable).parent / "hyperfleet", "token", "--dir", folder]
            token = subprocess.run(made, capture_output=True, text=True, check=True).stdout.strip()
            keys = str(Path(folder) / "jwks.json")
        with served(conninfo, options["workers"], keys) as (url, service):
            run(conninfo, url.replace("0.0.0.0", "127.0.0.1"), service, {**options, "token": token})


def run(conninfo: str, url: str, service: int, options: Mapping[str, Any]) -> None:
    """Fills an empty database and prints the measurements of a running service."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        ids = [str(row[0]) for row in conn.execute("SELECT id FROM clusters WHERE name ~ '^cluster'")]
        if not ids:
            ids = fill(url, options["rows"], options["token"])
            conn.execute("VACUUM ANALYZE")
        folder = conn.execute("SHOW data_directory").fetchone()
    assert folder is not None
    postgres = int((Path(folder[0]) / "postmaster.pid").read_text().split()[0])
    figures: dict[str, dict[str, Any]] = {}
    for clients in options["clients"].split(","):
        click.echo(f"{clients + ' clients':24}req/s  p50 ms  p99 ms   service  database   failed")
        for name, one in operations().items():
            if options["only"] and name not in options["only"].split(","):
                continue
            found = measure(url, one, ids, (service, postgres), {**options, "clients": clients})
            figures.setdefault(clients, {})[name] = found._asdict()
            click.echo(
                f"{name:22}{found.rate:7.0f} {found.p50:7.1f} {found.p99:7.1f}"
                f"{found.service:7.0f} us{found.database:7.0f} us{found.failed or '':>9}"
            )
    if options["output"]:
        Path(options["output"]).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
