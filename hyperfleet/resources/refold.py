"""Computes the status of every resource again after required adapters or rules have changed, and
removes marked resources that no adapter has to finalize any more.
"""

from collections.abc import Callable, Mapping

from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.database import connection
from hyperfleet.database.connection import Connection
from hyperfleet.kinds import RESOURCES, PerKind
from hyperfleet.resources import removal
from hyperfleet.resources.resource import Hold
from hyperfleet.status.conditions import Folding

BATCH = 100

COUNT = PerKind("SELECT count(*) FROM {table} WHERE true {only}")

NEXT = PerKind("SELECT id::text FROM {table} WHERE id > %(after)s {only} ORDER BY id LIMIT %(size)s")

UPDATE = PerKind("""
UPDATE {table} AS resource SET status = folded.status, version = version + 1
FROM jsonb_to_recordset(%(folded)s) AS folded (id uuid, status jsonb) WHERE resource.id = folded.id
""")


def count(conninfo: str) -> int:
    """Returns the number of all resources."""
    with connection.connect(conninfo) as conn:
        rows = [conn.execute(COUNT[kind]).fetchone() for kind in RESOURCES]
        return sum(int(row[0]) for row in rows if row)


def refold(conninfo: str, foldings: Mapping[str, Folding], progress: Callable[[int], object]) -> int:
    """Computes all statuses again, one transaction per batch; returns how many have changed.

    It can be stopped at any time and run again: finished batches are committed, and computing a status
    twice changes nothing.

    :param foldings: how to compute the statuses of each kind
    :param progress: called after each batch with its number of resources
    """
    changed = 0
    with connection.connect(conninfo) as conn:
        for kind in RESOURCES:
            ids = ["00000000-0000-0000-0000-000000000000"]
            while ids:
                after = {"after": ids[-1], "size": BATCH}
                ids = [row[0] for row in conn.execute(NEXT[kind], after)]
                with conn.transaction():
                    folded, finished = fold_all(conn, kind, ids, foldings[kind])
                # One transaction each, since a removal must lock the owner first.
                waiting = [(kind, id_) for id_ in finished]
                while waiting:
                    with conn.transaction():
                        gone = removal.finish(conn, *waiting.pop(), foldings)
                    removal.log_removed(gone)
                    waiting += removal.drop_references(conn, gone)
                changed += folded
                progress(len(ids))
    return changed


def fold_all(conn: Connection, kind: str, ids: list[str], folding: Folding) -> tuple[int, list[str]]:
    """Computes the statuses of a batch in the caller's transaction; returns how many have changed, and
    the ids of marked resources that can be removed.
    """
    folded, finished = [], []
    for held in Hold(conn, kind, {"ids": ids}, folding).all():
        if held.state["deleted_time"] and held.ended():
            finished.append(held.state["id"])
        status = held.fold(times.now())
        if status != held.state["status"]:
            folded.append({"id": held.state["id"], "status": status})
    if folded:
        conn.execute(UPDATE[kind], {"folded": Jsonb(folded)})
    return len(folded), finished
