"""Reports of adapters, and the status that they come to."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import flask
from psycopg.types.json import Jsonb

from hyperfleet import aggregation, database, listing, resource
from hyperfleet.errors import INVALID, Fault, Problem

logger = logging.getLogger(__name__)

# How far an adapter's clock may be ahead.
TOLERANCE = timedelta(minutes=5)

# Reports on one resource queue here, for the lock on its row.
LOCK: dict[str, LiteralString] = {
    "Cluster": """
        SELECT generation, hyperfleet_time(created_time), hyperfleet_time(updated_time),
               hyperfleet_time(deleted_time), status
        FROM clusters WHERE id = %(id)s FOR NO KEY UPDATE
    """,
    "NodePool": """
        SELECT generation, hyperfleet_time(created_time), hyperfleet_time(updated_time),
               hyperfleet_time(deleted_time), status
        FROM node_pools WHERE id = %(id)s AND owner_id = %(owner_id)s FOR NO KEY UPDATE
    """,
}

# A statement of its own: one that waited for the lock would see what was there before the wait.
STORED = """
SELECT adapter, observed_generation, conditions,
       hyperfleet_time(created_time), hyperfleet_time(last_report_time)
FROM adapter_statuses WHERE owner_type = %(kind)s AND owner_id = %(id)s
"""

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

UPDATE: dict[str, LiteralString] = {
    "Cluster": "UPDATE clusters SET status = %(status)s, version = version + 1 WHERE id = %(id)s",
    "NodePool": "UPDATE node_pools SET status = %(status)s, version = version + 1 WHERE id = %(id)s",
}

EXISTS: dict[str, LiteralString] = {
    "Cluster": "SELECT 1 FROM clusters WHERE id = %(id)s",
    "NodePool": "SELECT 1 FROM node_pools WHERE id = %(id)s AND owner_id = %(owner_id)s",
}


def get_cluster_statuses(cluster_id: str, **query: Any) -> flask.Response:
    """One page of the reports on a cluster."""
    return _list("Cluster", _owner(cluster_id), query)


def post_cluster_statuses(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Takes a report on a cluster."""
    return _report("Cluster", _owner(cluster_id), body)


def get_node_pools_statuses(cluster_id: str, nodepool_id: str, **query: Any) -> flask.Response:
    """One page of the reports on a node pool."""
    return _list("NodePool", _owner(cluster_id, nodepool_id), query)


def post_node_pool_statuses(cluster_id: str, nodepool_id: str, body: dict[str, Any]) -> flask.Response:
    """Takes a report on a node pool."""
    return _report("NodePool", _owner(cluster_id, nodepool_id), body)


# Older clients POST what newer ones PUT.
put_cluster_statuses = post_cluster_statuses
put_node_pool_statuses = post_node_pool_statuses


def _owner(cluster_id: str, nodepool_id: str | None = None) -> dict[str, Any]:
    if nodepool_id is None:
        return {"id": resource.key("Cluster", cluster_id)}
    return {
        "id": resource.key("NodePool", nodepool_id),
        "owner_id": resource.key("Cluster", cluster_id),
    }


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
    values = {"kind": kind, **owner}
    with database.transaction() as conn:
        row = conn.execute(LOCK[kind], values)
        rows = conn.execute(STORED, values)
        found = row.fetchone()
        if found is None:
            raise resource.not_found(kind, owner["id"])
        names = ("generation", "created_time", "updated_time", "deleted_time")
        state, previous = dict(zip(names, found[:4], strict=True)), found[4]
        reports = {stored[0]: dict(zip(REPORT, stored, strict=True)) for stored in rows}
        stored_report = reports.get(report["adapter"])
        reason = aggregation.discard_reason(state["generation"], stored_report, report)
        if reason is None:
            at = report["observed_time"] or max(
                aggregation.now(), stored_report["last_report_time"] if stored_report else ""
            )
            merged = aggregation.merge(stored_report, report, at)
            reports[report["adapter"]] = merged
            status = aggregation.fold(
                state, reports.values(), previous, resource.required_adapters(kind), at
            )
            stored_now = conn.execute(STORE, {**values, **_row(merged)})
            conn.execute(UPDATE[kind], {**values, "status": Jsonb(status)})
    if reason is not None:
        logger.info("report of %s on %s %s discarded: %s", report["adapter"], kind, owner["id"], reason)
        return flask.Response(status=204, headers={"X-Discard-Reason": reason})
    document = stored_now.fetchone()
    assert document is not None
    return resource.answer(document[0], 201)


REPORT = ("adapter", "observed_generation", "conditions", "created_time", "last_report_time")


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
    if "observed_time" not in body:
        return None
    fault: Fault = {"field": "observed_time", "message": "", "constraint": "format"}
    try:
        moment = datetime.fromisoformat(body["observed_time"].upper())
        text = aggregation.timestamp(moment)
    except (ValueError, OverflowError):
        fault["message"] = "must be a time between the years 1 and 9999"
        raise Problem(INVALID, faults=[fault]) from None
    if moment > datetime.now(UTC) + TOLERANCE:
        fault["message"] = "must be at most 5 minutes ahead of the service's clock"
        fault["constraint"] = "maximum"
        raise Problem(INVALID, faults=[fault])
    return text
