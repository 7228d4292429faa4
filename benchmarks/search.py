"""How long the first page of a search takes with a thousand, a hundred thousand and a million clusters.

    python benchmarks/search.py [--rows 1000,100000,1000000] [--repeat 51]

Requires the extra ``embedded``. A million clusters take about 4 GB in the folder for temporary files
and ten minutes, mostly for loading. Each cluster has 4 labels and 6 conditions; there is one node pool
for every two clusters. Measures a list's statement until its hundred documents have been received.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import psycopg

from hyperfleet.database import embedded, migration
from hyperfleet.kinds import KINDS
from hyperfleet.lists.order import order_by
from hyperfleet.lists.search import translate

# One row for each i. A quarter of the clusters is in prod, half are gold, and a tenth is in each region;
# each customer has ten. A tenth has failed, and another tenth is not ready. All but the first 30 were
# last reported on in the last half hour.
ROWS = """
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i,
    LATERAL (SELECT
        timestamptz '2026-01-01T00:00:00Z' + i * interval '7 seconds' AS created,
        hashint8extended(i, 0) & 1048575 AS h) AS a,
    LATERAL (SELECT
        CASE h %% 10 WHEN 0 THEN 'Failed' WHEN 1 THEN 'NotReady' ELSE 'Ready' END AS phase,
        CASE WHEN h %% 10 < 2 THEN 'False' ELSE 'True' END AS ready,
        CASE WHEN h %% 100 = 0 THEN 'False' ELSE 'True' END AS available,
        timestamptz '2026-10-01T00:00:00Z' - CASE WHEN i <= 30 THEN interval '1 day' ELSE '0' END
            - h * 1.7 * interval '1 millisecond' AS reported) AS b
"""
ID = """
    (lpad(to_hex(1767225600000 + i * 7000), 12, '0') || '7' || substr(md5(%(salt)s || i), 1, 3)
        || '8' || substr(md5(%(salt)s || i), 4, 15))::uuid
"""
VALUES = """
    jsonb_build_object('env', (ARRAY['prod', 'stage', 'dev', 'dev'])[1 + i %% 4],
        'tier', CASE WHEN h / 10 %% 2 = 0 THEN 'gold' ELSE 'silver' END,
        'region', 'region-' || h / 100 %% 10, 'customer', 'customer-' || i / 10),
    jsonb_build_object('version', '4.' || 12 + i %% 8 || '.' || i %% 30, 'nodes', i %% 50,
        'provider', jsonb_build_object('name', 'aws', 'zone', 'zone-' || i %% 60)),
    jsonb_build_object('phase', b.phase, 'observed_generation', 1,
        'last_transition_time', hyperfleet_time(created),
        'last_updated_time', hyperfleet_time(reported),
        'adapters', '[]'::jsonb,
        'conditions', (SELECT jsonb_agg(jsonb_build_object('type', type,
            'status', CASE WHEN type IN ('Ready', 'Reconciled') THEN b.ready ELSE b.available END,
            'reason', 'ReconciledAll', 'message', 'All required adapters are available',
            'observed_generation', 1, 'created_time', hyperfleet_time(created),
            'last_updated_time', hyperfleet_time(reported),
            'last_transition_time', hyperfleet_time(created)))
          FROM unnest(ARRAY['Ready', 'Reconciled', 'Available', 'LastKnownReconciled',
            'DnsSuccessful', 'ValidationSuccessful']) AS type)),
    created, created, 'load@example.com', 'load@example.com'
"""
COLUMNS = "id, name, labels, spec, status, created_time, updated_time, created_by, updated_by"
LOAD = [
    f"INSERT INTO clusters ({COLUMNS}) SELECT {ID}, 'cluster-' || i, {VALUES} {ROWS}",
    # Three for each owner, always with the same three names.
    f"""
    INSERT INTO node_pools ({COLUMNS}, owner_id)
    SELECT {ID}, (ARRAY['workers', 'infra', 'gpu'])[1 + i %% 6 / 2], {VALUES}, owner.id
    {ROWS}, clusters AS owner WHERE i %% 2 = 0 AND owner.name = 'cluster-' || (i - 1) / 6 * 6 + 1
    """,
]
# As many resources of a declared kind as clusters.
CHANNELS = f"""
INSERT INTO resources ({COLUMNS}, kind, href)
SELECT {ID}, 'cluster-' || i, {VALUES}, 'Channel', '/api/hyperfleet/v1/channels/' || {ID} {ROWS}
"""
LABELS = """
INSERT INTO labels (owner_type, owner_id, key, value, created_time)
SELECT '{kind}', id, key, value, created_time FROM {table}, jsonb_each_text(labels)
ON CONFLICT DO NOTHING
"""

SEARCHES = {
    "no search": ("Cluster", ""),
    "a label, of 1 in 4": ("Cluster", "labels.env='prod'"),
    "a label, of 1 in 10": ("Cluster", "labels.region='region-3'"),
    "a label, of ten": ("Cluster", "labels.customer='customer-50'"),
    "two labels": ("Cluster", "labels.env='prod' and labels.tier='gold'"),
    "name": ("Cluster", "name='cluster-500'"),
    "not reconciled": ("Cluster", "status.conditions.Reconciled='False'"),
    "not reconciled, old news": (
        "Cluster",
        "status.conditions.Reconciled='False'"
        " and status.conditions.Reconciled.last_updated_time < '2026-09-30T23:59:50Z'",
    ),
    "reconciled, old news": (
        "Cluster",
        "status.conditions.Reconciled='True'"
        " and status.conditions.Reconciled.last_updated_time < '2026-09-30T23:30:00Z'",
    ),
    "phase": ("Cluster", "status.phase='Failed'"),
    "owner": ("NodePool", "owner_id='{owner}'"),
}


def load(conn: psycopg.Connection, first: int, last: int) -> None:
    """Adds the clusters and node pools numbered first to last, and updates the planner's statistics."""
    _load(conn, first, last, {"c": LOAD[0], "n": LOAD[1]})
    for kind in ("Cluster", "NodePool"):
        conn.execute(LABELS.format(kind=kind, table=KINDS[kind].table))
    conn.execute("VACUUM ANALYZE")


def load_channels(conn: psycopg.Connection, first: int, last: int) -> None:
    """Adds resources of the kind Channel with these numbers, and updates the planner's statistics."""
    _load(conn, first, last, {"r": CHANNELS})
    conn.execute(LABELS.format(kind="Channel", table="resources"))
    conn.execute("VACUUM ANALYZE")


def _load(conn: psycopg.Connection, first: int, last: int, statements: dict[str, str]) -> None:
    step = 50_000
    for start in range(first, last + 1, step):
        end = min(last, start + step - 1)
        for salt, statement in statements.items():
            conn.execute(statement, {"first": start, "last": end, "salt": salt})


def statement(conn: psycopg.Connection, kind: str, search: str) -> tuple[str, dict[str, object]]:
    """Returns a list's statement for the first page of a search, and the values to bind."""
    row = conn.execute("SELECT owner_id FROM node_pools ORDER BY created_time LIMIT 1").fetchone()
    owner = row[0] if row else ""
    order = order_by(None, None, kind)
    where, values = "true", dict(order.values)
    if search:
        condition = translate(search.format(owner=owner), kind)
        where, values = condition.sql, {**values, **condition.values}
    table, only = KINDS[kind].table, KINDS[kind].only
    return f"SELECT document FROM {table} WHERE {where} {only} ORDER BY {order.sql} LIMIT 100", values


def measure(conn: psycopg.Connection, kind: str, search: str, repeat: int) -> tuple[float, int]:
    """Returns the p50 of reading the first page in milliseconds, and the number of its items."""
    query, values = statement(conn, kind, search)
    taken, items = [], 0
    for _ in range(repeat):
        start = time.perf_counter()
        items = len(conn.execute(query, values, prepare=False).fetchall())
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken), items


@click.command()
@click.option("--rows", default="1000,100000,1000000", show_default=True, help="Numbers of clusters.")
@click.option("--repeat", default=51, show_default=True, help="Times to run each search.")
def main(rows: str, repeat: int) -> None:
    """Measure the p50 of each search's first page, and the ratio of the largest size to the smallest."""
    sizes = sorted(int(size) for size in rows.split(","))
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in SEARCHES}
    with tempfile.TemporaryDirectory() as folder, embedded.running(Path(folder)) as conninfo:
        migration.apply(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as conn:
            for before, size in zip([0, *sizes], sizes, strict=False):
                start = time.monotonic()
                load(conn, before + 1, size)
                click.echo(f"{size:,} clusters loaded in {time.monotonic() - start:.0f} s", err=True)
                for name, (kind, search) in SEARCHES.items():
                    results[name].append(measure(conn, kind, search, repeat))
    heads = "".join(f"{size:>14,}" for size in sizes)
    click.echo(f"{'p50 of the first page':28}{heads}{'ratio':>8}")
    for name, times in results.items():
        cells = "".join(f"{f'{milliseconds:.2f} ms':>14}" for milliseconds, _ in times)
        items = " ".join(str(count) for _, count in times)
        click.echo(f"{name:28}{cells}{times[-1][0] / times[0][0]:8.1f}   items: {items}")


if __name__ == "__main__":
    main()
