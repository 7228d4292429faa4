"""Folds the status of every resource anew, after required adapters or rules have changed, and
ends the marked ones for which nobody has to do anything any more.
"""

from collections.abc import Callable, Mapping

from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.database import connection
from hyperfleet.database.connection import Connection
from hyperfleet.kinds import RESOURCES, both
from hyperfleet.resources import removal
from hyperfleet.resources.resource import Hold
from hyperfleet.status.conditions import Folding

BATCH = 100

COUNT = both("SELECT count(*) FROM {table} WHERE true {only}")

NEXT = both("SELECT id::text FROM {table} WHERE id > %(after)s {only} ORDER BY id LIMIT %(size)s")

UPDATE = both("""
UPDATE {table} AS resource SET status = folded.status, version = version + 1
FROM jsonb_to_recordset(%(folded)s) AS folded (id uuid, status jsonb) WHERE resource.id = folded.id
""")


def count(conninfo: str) -> int:
    """How many resources there are."""
    with connection.connect(conninfo) as conn:
        rows = [conn.execute(COUNT[kind]).fetchone() for kind in RESOURCES]
        return sum(int(row[0]) for row in rows if row)


def refold(conninfo: str, foldings: Mapping[str, Folding], progress: Callable[[int], object]) -> int:
    """Folds all statuses anew, in batches of one transaction each; returns how many were changed.

    May be stopped at any time and run again: what is folded stays folded, and folding it once more
    changes nothing.

    :param foldings: what the statuses of each kind are folded by
    :param progress: told after each batch how many resources it had
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
                # Each on its own, since who removes one has to lock what it belongs to first.
                waiting = [(kind, id_) for id_ in finished]
                while waiting:
                    with conn.transaction():
                        gone = removal.finish(conn, *waiting.pop(), foldings)
                    removal.tell(gone)
                    waiting += removal.left(conn, gone)
                changed += folded
                progress(len(ids))
    return changed


def fold_all(conn: Connection, kind: str, ids: list[str], folding: Folding) -> tuple[int, list[str]]:
    """Folds some statuses anew in the caller's transaction; returns how many were changed, and which
    resources have ended.
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
