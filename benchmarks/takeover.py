"""How long an import takes: `python benchmarks/takeover.py [CLUSTERS]`.

Imports a database like that of the original of December 2025, with two node pools per cluster and three
reports on each resource, into an empty one on the same embedded PostgreSQL: as a dry run, for real, and
once more, when everything is already there.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from original import Original  # noqa: E402
from process import CLEAN, HYPERFLEET  # noqa: E402

from hyperfleet.database import embedded, migration  # noqa: E402


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder, embedded.running(Path(folder)) as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as conn:
            for name in ("original", "fleet"):
                conn.execute(f"CREATE DATABASE {name}")
        original = Original(make_conninfo(conninfo, dbname="original"))
        original.fleet(size)
        target = make_conninfo(conninfo, dbname="fleet")
        migration.apply(target)
        rows = size * 3 * 4
        arguments = [HYPERFLEET, "import", "--from-database", original.conninfo]
        for label, more in (("dry run", ["--dry-run"]), ("import", []), ("once more", [])):
            start = time.perf_counter()
            subprocess.run(
                [*arguments, "--database-url", target, *more],
                check=True,
                stdout=subprocess.DEVNULL,
                env=CLEAN,
            )
            took = time.perf_counter() - start
            print(f"{label:10} {rows:,} rows in {took:5.1f} s, {rows / took:,.0f} per second")


if __name__ == "__main__":
    main()
