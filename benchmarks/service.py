"""What clients wait for, over HTTP, and how much the service does in a second.

    python benchmarks/service.py [--rows 10000] [--seconds 5] [--clients 8]

Serves the rows of benchmarks/search.py from an embedded PostgreSQL. Single times are of one client and
depend on the machine; the column "ratio" is that to a request which needs no database.
"""

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import click
import psycopg

from benchmarks.search import SEARCHES, load
from hyperfleet.database import embedded, migration

BASE = "/api/hyperfleet/v1"
REPORT = json.dumps(
    {
        "adapter": "dns",
        "observed_generation": 1,
        "conditions": [
            {"type": kind, "status": "True", "reason": "Fine", "message": "All is well"}
            for kind in ("Available", "Applied", "Health")
        ],
    }
)
HEADERS = {"Content-Type": "application/json"}


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)

    def send(self, method: str, path: str, body: str | None = None) -> bytes:
        self.connection.request(method, BASE + path, body, HEADERS)
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status < 400, content
        return content


def p50(request: Callable[[], object], seconds: float) -> float:
    """The median time of a request, in milliseconds."""
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        start = time.perf_counter()
        request()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


def throughput(make: Callable[[int], Callable[[], object]], clients: int, seconds: float) -> float:
    """How many requests a second several clients get answered."""
    counts = [0] * clients
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        request = make(number)
        while time.perf_counter() < end:
            request()
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


@click.command()
@click.option("--rows", default=10_000, show_default=True, help="How many clusters.")
@click.option("--seconds", default=3.0, show_default=True, help="How long each thing is measured.")
@click.option("--clients", default=8, show_default=True, help="How many send at once.")
def main(rows: int, seconds: float, clients: int) -> None:
    """Prints times and throughput of the requests that clients send all day."""
    with tempfile.TemporaryDirectory() as folder, embedded.running(Path(folder)) as conninfo:
        migration.apply(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as conn:
            load(conn, 1, rows)
            ids = [str(row[0]) for row in conn.execute("SELECT id FROM clusters LIMIT 1000")]
            found = conn.execute("SELECT owner_id FROM node_pools LIMIT 1").fetchone()
            owner = found[0] if found else ""
        server = subprocess.Popen(
            [
                Path(sys.executable).parent / "hyperfleet",
                *("serve", "--no-auth", "--database-url", conninfo, "--log-level", "warning"),
                *("--port", "0", "--health-port", "0", "--metrics-port", "0"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout
            line = next(line for line in server.stdout if line.startswith("  API"))
            measure(int(line.split(":")[2].split("/")[0]), ids, str(owner), rows, seconds, clients)
        finally:
            server.terminate()
            server.wait()


def measure(port: int, ids: list[str], owner: str, rows: int, seconds: float, clients: int) -> None:
    """Prints the measurements of a running service."""
    client = Client(port)
    base = p50(lambda: client.send("GET", "/compatibility"), seconds)
    deep = max(1, rows // 100)
    paths = {
        "compatibility (no database)": "/compatibility",
        "one cluster": f"/clusters/{ids[0]}",
        "first page of 100": "/clusters",
        f"page {deep // 2:,} of 100": f"/clusters?page={deep // 2}",
        f"page {deep:,} of 100": f"/clusters?page={deep}",
        "first page of 20": "/clusters?size=20",
        f"page {min(10_000, rows // 20):,} of 20": f"/clusters?size=20&page={min(10_000, rows // 20)}",
        "total alone": "/clusters?size=0",
        "100 items, two members each": "/clusters?fields=name,status.phase",
    }
    for name, (kind, search) in SEARCHES.items():
        if search:
            path = "/clusters" if kind == "Cluster" else "/nodepools"
            paths[f"search: {name}"] = f"{path}?search={quote(search.format(owner=owner))}"
    click.echo(f"{rows:,} clusters, one client{'':24}   p50   ratio")
    for name, path in paths.items():
        taken = p50(lambda path=path: client.send("GET", path), seconds)  # type: ignore[misc]
        click.echo(f"  {name:44}{taken:8.2f} ms{taken / base:7.1f}")
    taken = p50(lambda: client.send("PUT", f"/clusters/{ids[0]}/statuses", REPORT), seconds)
    click.echo(f"  {'report':44}{taken:8.2f} ms{taken / base:7.1f}")

    click.echo(f"{clients} clients at once{'':32}requests/s")

    def reading(path: str) -> Callable[[int], Callable[[], object]]:
        def make(_number: int) -> Callable[[], object]:
            mine = Client(port)
            return lambda: mine.send("GET", path)

        return make

    def reporting(shared: bool) -> Callable[[int], Callable[[], object]]:
        def make(number: int) -> Callable[[], object]:
            mine, id_ = Client(port), ids[0 if shared else number]
            body = REPORT.replace("dns", f"dns-{number}")
            return lambda: mine.send("PUT", f"/clusters/{id_}/statuses", body)

        return make

    for name, make in {
        "compatibility (no database)": reading("/compatibility"),
        "one cluster": reading(f"/clusters/{ids[0]}"),
        "first page of 100": reading("/clusters"),
        "reports on one cluster": reporting(True),
        "reports on different clusters": reporting(False),
    }.items():
        click.echo(f"  {name:44}{throughput(make, clients, seconds):10.0f}")


if __name__ == "__main__":
    main()
