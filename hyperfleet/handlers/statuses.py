"""Reports of adapters, and the status that they come to."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import flask
from psycopg.types.json import Jsonb

from hyperfleet import aggregation, database, lifecycle, listing, projection, resource, times
from hyperfleet.errors import INVALID, Fault, Problem, with_value
from hyperfleet.projection import Shape
from hyperfleet.resource import both

logger = logging.getLogger(__name__)

# How far an adapter's clock may be ahead.
TOLERANCE = timedelta(minutes=5)

# Who may remove a marked node pool holds its cluster first: see the order of locks in lifecycle.
LOCK_OWNER = both("""
SELECT id::text FROM clusters WHERE id = (
    SELECT owner_id FROM {table} WHERE id = %(id)s {under} AND deleted_time IS NOT NULL
) FOR NO KEY UPDATE
""")["NodePool"]

# Reports on one resource queue here, for the lock on its row.
LOCK = both("""
SELECT generation, hyperfleet_time(created_time), hyperfleet_time(updated_time),
       hyperfleet_time(deleted_time), status
FROM {table} WHERE id = %(id)s {under} FOR NO KEY UPDATE
""")
STATE = ("generation", "created_time", "updated_time", "deleted_time", "status")

STORE = """
INSERT INTO adapter_statuses
    (owner_type, owner_id, adapter, observed_generation, conditions, data, metadata,
     created_time, last_report_time)
VALUES (%(kind)s, %(id)s, %(adapter)s, %(observed_generation)s, %(conditions)s, %(data)s, %(metadata)s,
        %(created_time)s, %(last_report_time)s)
ON CONFLICT (owner_type, owner_id, adapter) DO UPDATE SET
    observed_generation = excluded.observed_generation, conditions = excluded.conditions,
    data = excluded.data, metadata = excluded.metadata, last_report_time = excluded.last_report_time
RETURNING document
"""

EXISTS = both("SELECT 1 FROM {table} WHERE id = %(id)s {under}")


def get_cluster_statuses(cluster_id: str, **query: Any) -> flask.Response:
    """One page of the reports on a cluster."""
    return _list("Cluster", resource.key_of(cluster_id), query)


def post_cluster_statuses(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Takes a report on a cluster."""
    return _report("Cluster", resource.key_of(cluster_id), body)


def get_node_pools_statuses(
    nodepool_id: str, cluster_id: str | None = None, **query: Any
) -> flask.Response:
    """One page of the reports on a node pool."""
    return _list("NodePool", resource.key_of(cluster_id, nodepool_id), query)


def post_node_pool_statuses(
    nodepool_id: str, body: dict[str, Any], cluster_id: str | None = None
) -> flask.Response:
    """Takes a report on a node pool."""
    return _report("NodePool", resource.key_of(cluster_id, nodepool_id), body)


# Older clients POST what newer ones PUT.
put_cluster_statuses = post_cluster_statuses
put_node_pool_statuses = post_node_pool_statuses
# The same where the path names no cluster, and by another name of the list.
get_statuses_of_node_pool = get_node_pools_statuses
post_statuses_of_node_pool = put_statuses_of_node_pool = post_node_pool_statuses
get_cluster_adapter_statuses = get_cluster_statuses
get_node_pool_adapter_statuses = get_adapter_statuses_of_node_pool = get_node_pools_statuses


def _list(kind: str, owner: dict[str, Any], query: dict[str, Any]) -> flask.Response:
    return listing.respond(
        "AdapterStatus",
        query,
        "owner_type = %(kind)s AND owner_id = %(id)s",
        {"kind": kind, **owner},
        exists=EXISTS[kind],
        otherwise=resource.not_found(kind, owner["id"]),
    )


def _report(kind: str, owner: dict[str, Any], body: dict[str, Any]) -> flask.Response:
    _refuse_repetitions(body["conditions"])
    report = {**body, "observed_time": _observed_time(body)}
    shape = projection.asked("AdapterStatus")
    answer = None
    while answer is None:
        answer = _take(kind, owner, report, shape)
    return answer


def _take(
    kind: str, owner: dict[str, Any], report: dict[str, Any], shape: Shape
) -> flask.Response | None:
    """Stores a report and the status that it yields; None: the node pool was marked meanwhile, and
    its cluster has to be locked before it.
    """
    values = {"kind": kind, **owner}
    required = resource.required_adapters(kind)
    with database.transaction() as conn:
        locked = conn.execute(LOCK_OWNER, values) if kind == "NodePool" else None
        found = conn.execute(LOCK[kind], values)
        rows = conn.execute(lifecycle.REPORTS, values)
        children = conn.execute(lifecycle.CHILDREN, values)
        row = found.fetchone()
        if row is None:
            raise resource.not_found(kind, owner["id"])
        state = dict(zip(STATE, row, strict=True))
        cluster = locked.fetchone() if locked and state["deleted_time"] else None
        if locked and state["deleted_time"] and cluster is None:
            return None
        reports = {stored["adapter"]: stored for stored in lifecycle.reports_of(rows)}
        stored = reports.get(report["adapter"])
        reason = aggregation.discard_reason(state["generation"], stored, report)
        if reason:
            logger.info(
                "report of %s on %s %s discarded: %s", report["adapter"], kind, owner["id"], reason
            )
            return resource.empty(204, X_Discard_Reason=reason)
        # A clock that is behind another replica's must not make a report older than the last one.
        last = stored["last_report_time"] if stored else ""
        at = report["observed_time"] or max(times.now(), last)
        merged = reports[report["adapter"]] = aggregation.merge(stored, report, at)
        left = children.fetchone()
        assert left is not None
        document = conn.execute(STORE, {**values, **_row(merged)})
        if (
            state["deleted_time"]
            and not left[0]
            and aggregation.all_finalized(state["generation"], reports.values(), required)
        ):
            lifecycle.remove(conn, owner["id"])
            if cluster:
                clusters = resource.required_adapters("Cluster")
                lifecycle.settle(conn, cluster[0], at, clusters)
        else:
            status = aggregation.fold(state, reports.values(), state["status"], required, at, left[0])
            conn.execute(lifecycle.SET_STATUS[kind], {**values, "status": Jsonb(status)})
    done = document.fetchone()
    assert done is not None
    return resource.shaped(shape, done[0], 201)


def _row(report: dict[str, Any]) -> dict[str, Any]:
    optional = {key: Jsonb(report[key]) if key in report else None for key in ("data", "metadata")}
    return {**report, "conditions": Jsonb(report["conditions"]), **optional}


def _refuse_repetitions(conditions: list[dict[str, Any]]) -> None:
    seen: dict[str, int] = {}
    faults: list[Fault] = []
    for index, condition in enumerate(conditions):
        first = seen.setdefault(condition["type"], index)
        if first != index:
            message = f"repeats the type of conditions[{first}]; a type may occur once"
            faults.append(
                {"field": f"conditions[{index}].type", "message": message, "constraint": "unique"}
            )
    if faults:
        raise Problem(INVALID, faults=faults)


def _observed_time(body: dict[str, Any]) -> str | None:
    """The time at which the adapter looked, if it says so.

    Raises Problem for one that the calendar does not have, or that is too far ahead.
    """
    sent = body.get("observed_time")
    if sent is None:
        return None
    fault = with_value({"field": "observed_time", "message": "", "constraint": "format"}, sent)
    try:
        moment = datetime.fromisoformat(sent.upper())
        text = times.timestamp(moment)
    except (ValueError, OverflowError):
        fault["message"] = "must be a time between the years 1 and 9999"
        raise Problem(INVALID, faults=[fault]) from None
    if moment > datetime.now(UTC) + TOLERANCE:
        fault["message"] = "must be at most 5 minutes ahead of the service's clock"
        fault["constraint"] = "maximum"
        raise Problem(INVALID, faults=[fault])
    return text
