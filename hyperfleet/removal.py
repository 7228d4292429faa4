"""The end of a resource: for good once nobody has to do anything for it, or by force.

The order of locks is that of :mod:`hyperfleet.lifecycle`.
"""

import logging
from collections.abc import Mapping
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.conditions import Folding
from hyperfleet.database.connection import Connection, Cursor
from hyperfleet.database.statements import transaction
from hyperfleet.errors import WRONG_STATE, Problem
from hyperfleet.kinds import RESOURCES, both
from hyperfleet.resource import SET_STATUS, Hold
from hyperfleet.service import Service

logger = logging.getLogger(__name__)

# The cluster of a node pool, which never changes. For a report it is locked only where that may remove
# the node pool.
OWNER = both("""/* clusters_lock_owner */
SELECT id::text FROM clusters WHERE id = (
    SELECT owner_id FROM {table} WHERE id = %(id)s {under}
    AND (NOT %(marked)s OR deleted_time IS NOT NULL)
) FOR NO KEY UPDATE
""")["NodePool"]

# Whoever locks several node pools locks them in this order.
LOCK_POOLS = """/* node_pools_lock_all */
SELECT 1 FROM node_pools WHERE owner_id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE
"""

# The rows of an owner and all that belongs to it; labels and reports have no foreign key to follow.
REMOVE: LiteralString = """/* node_pools_remove */
WITH pools AS (
    DELETE FROM node_pools WHERE id = ANY(%(ids)s) OR owner_id = ANY(%(ids)s) RETURNING id
), gone AS (
    SELECT id FROM pools UNION SELECT unnest(%(ids)s::uuid[])
), reports AS (
    DELETE FROM adapter_statuses USING gone
    WHERE owner_type IN ('Cluster', 'NodePool') AND owner_id = gone.id
)
DELETE FROM labels USING gone WHERE owner_type IN ('Cluster', 'NodePool') AND owner_id = gone.id
"""
# After its node pools, in a statement of its own: the foreign key is checked at each one's end.
REMOVE_CLUSTERS = "/* clusters_remove */ DELETE FROM clusters WHERE id = ANY(%(ids)s)"

AUDIT = """/* audit_add */
INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, document)
SELECT %(at)s, %(by)s, 'force-delete', %(reason)s, gone.kind, gone.id, gone.document
FROM (
    SELECT 'Cluster' AS kind, id, document FROM clusters WHERE id = %(id)s
    UNION ALL
    SELECT 'NodePool', id, document FROM node_pools WHERE id = %(id)s OR owner_id = %(id)s
) AS gone
RETURNING resource_type, resource_id::text
"""


def lock_owner(
    conn: Connection, kind: str, key: Mapping[str, Any], *, marked: bool = False
) -> Cursor | None:
    """Locks the resource that one belongs to; the cursor yields its id. None: its kind belongs to none.

    :param marked: only where the one that belongs to it is marked as deleted
    """
    if not RESOURCES[kind].parent:
        return None
    return conn.execute(OWNER, {"owner_id": None, **key, "marked": marked})


def remove(conn: Connection, *ids: str) -> None:
    """Removes resources for good, with all that belongs to them. The caller holds their locks."""
    conn.execute(LOCK_POOLS, {"ids": list(ids)})
    conn.execute(REMOVE, {"ids": list(ids)})
    conn.execute(REMOVE_CLUSTERS, {"ids": list(ids)})


def tell(kind: str, id_: str) -> None:
    """Logs the removal of a resource that nobody has to do anything for any more."""
    more = {"kind": kind, "id": id_, "reason": "finalized"}
    logger.info("%s %s removed: nobody has to finalize it any more", kind, id_, extra=more)


def settle(conn: Connection, cluster_id: str, at: str, folding: Folding) -> bool:
    """Folds a marked cluster once more after one of its node pools is gone, or removes it when that
    was the last thing to wait for; whether it did, for the caller to :func:`tell` after its COMMIT.
    The caller holds the cluster's lock.
    """
    held = Hold(conn, "Cluster", {"id": cluster_id}, folding).one()
    if held is None or not held.state["deleted_time"]:
        return False
    if held.ended():
        remove(conn, cluster_id)
        return True
    status = held.fold(at)
    if status != held.state["status"]:
        conn.execute(SET_STATUS["Cluster"], {"id": cluster_id, "status": Jsonb(status)})
    return False


def finish(
    conn: Connection, kind: str, id_: str, foldings: Mapping[str, Folding]
) -> list[tuple[str, str]]:
    """Removes a marked resource for which nobody has to do anything any more, and then maybe the
    cluster that waits for it. Runs in the caller's transaction.

    :param foldings: what the statuses of each kind are folded by
    :returns: kind and id of what was removed, for the caller to :func:`tell` after its COMMIT
    """
    gone = []
    above = lock_owner(conn, kind, {"id": id_})
    if above:
        owner, held = above.fetchone(), Hold(conn, kind, {"id": id_}, foldings[kind]).one()
        if not owner or not held or not held.state["deleted_time"] or not held.ended():
            return []
        remove(conn, id_)
        gone.append((kind, id_))
        id_ = owner[0]
    if settle(conn, id_, times.now(), foldings["Cluster"]):
        gone.append(("Cluster", id_))
    return gone


def force(service: Service, kind: str, key: Mapping[str, Any], reason: str, by: str) -> None:
    """Removes a marked resource, what belongs to it and their reports now, and records who did it and
    why. Raises Problem for a resource that is not marked.
    """
    at = times.now()
    with service.turns.of(key["id"]), transaction(service.pool) as conn:
        above = lock_owner(conn, kind, key)
        held = Hold(conn, kind, key, service.foldings[kind]).found()
        if not held.state["deleted_time"]:
            raise Problem(
                WRONG_STATE,
                f"The {RESOURCES[kind].noun} is not being deleted. DELETE it first; only what is being "
                "deleted can be force-deleted.",
            )
        values = {"id": key["id"], "at": at, "by": by, "reason": reason}
        gone = conn.execute(AUDIT, values)
        remove(conn, key["id"])
        cluster = above.fetchone() if above else None
        settled = cluster and settle(conn, cluster[0], at, service.foldings["Cluster"])
    for gone_kind, gone_id in gone:
        more = {"kind": gone_kind, "id": gone_id, "reason": reason}
        said = (gone_kind, gone_id, by, reason)
        logger.warning("%s %s removed by force by %s: %r", *said, extra=more)
    if cluster and settled:
        tell("Cluster", cluster[0])
