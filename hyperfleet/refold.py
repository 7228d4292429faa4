"""Folds the status of every resource anew, after the setting of required adapters has changed, and
ends the marked ones for which nobody has to do anything any more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from hyperfleet import aggregation, database, lifecycle, times
from hyperfleet.resource import both

BATCH = 100

COUNT = "SELECT (SELECT count(*) FROM clusters) + (SELECT count(*) FROM node_pools)"

# In the order of the ids, as everybody who locks several: so no two wait for each other.
LOCK = both("""
SELECT id::text, generation, hyperfleet_time(created_time), hyperfleet_time(updated_time),
       hyperfleet_time(deleted_time), status
FROM {table} WHERE id > %(after)s ORDER BY id LIMIT %(size)s FOR NO KEY UPDATE
""")

REPORTS = """
SELECT owner_id::text, adapter, observed_generation, conditions,
       hyperfleet_time(created_time), hyperfleet_time(last_report_time)
FROM adapter_statuses WHERE owner_type = %(kind)s AND owner_id = ANY(%(ids)s::uuid[])
"""

CHILDREN = """
SELECT owner_id::text, count(*) FROM node_pools WHERE owner_id = ANY(%(ids)s::uuid[]) GROUP BY owner_id
"""

UPDATE = both("""
UPDATE {table} AS resource SET status = folded.status, version = version + 1
FROM jsonb_to_recordset(%(folded)s) AS folded (id uuid, status jsonb) WHERE resource.id = folded.id
""")


def count(conninfo: str) -> int:
    """How many resources there are."""
    with database.connect(conninfo) as conn:
        row = conn.execute(COUNT).fetchone()
        assert row is not None
        return int(row[0])


def refold(
    conninfo: str, required: Callable[[str], Sequence[str]], progress: Callable[[int], object]
) -> int:
    """Folds all statuses anew, in batches of one transaction each; returns how many were changed.

    May be stopped at any time and run again: what is folded stays folded, and folding it once more
    changes nothing.

    :param required: gives the required adapters of a kind
    :param progress: told after each batch how many resources it had
    """
    changed = 0
    with database.connect(conninfo) as conn:
        for kind in LOCK:
            after: str | None = "00000000-0000-0000-0000-000000000000"
            while after is not None:
                with conn.transaction():
                    after, size, folded, finished = _batch(conn, kind, after, required(kind))
                # Each on its own, since who removes a node pool has to lock its cluster first.
                for id_ in finished:
                    with conn.transaction():
                        lifecycle.finish(conn, kind, id_, required)
                changed += folded
                progress(size)
    return changed


def _batch(
    conn: psycopg.Connection[Any], kind: str, after: str, required: Sequence[str]
) -> tuple[str | None, int, int, list[str]]:
    rows = conn.execute(LOCK[kind], {"after": after, "size": BATCH}).fetchall()
    if not rows:
        return None, 0, 0, []
    bound = {"kind": kind, "ids": [row[0] for row in rows]}
    reports: dict[str, list[dict[str, Any]]] = {}
    for owner, *report in conn.execute(REPORTS, bound):
        reports.setdefault(owner, []).extend(lifecycle.reports_of([report]))
    children = dict(conn.execute(CHILDREN, bound).fetchall()) if kind == "Cluster" else {}
    folded, finished = [], []
    for id_, generation, created_time, updated_time, deleted_time, previous in rows:
        state = {
            "generation": generation,
            "created_time": created_time,
            "updated_time": updated_time,
            "deleted_time": deleted_time,
        }
        own, left = reports.get(id_, []), children.get(id_, 0)
        if deleted_time and not left and aggregation.all_finalized(generation, own, required):
            finished.append(id_)
        status = aggregation.fold(state, own, previous, required, times.now(), left)
        if status != previous:
            folded.append({"id": id_, "status": status})
    if folded:
        conn.execute(UPDATE[kind], {"folded": Jsonb(folded)})
    return str(rows[-1][0]), len(rows), len(folded), finished
