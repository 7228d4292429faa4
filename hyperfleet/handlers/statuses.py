"""Adapters' reports, and the status that results from them."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from psycopg.types.json import Jsonb

from hyperfleet import times
from hyperfleet.database.statements import transaction
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.engine.response import Response
from hyperfleet.errors import INVALID, Fault, Problem, with_value
from hyperfleet.handlers import request
from hyperfleet.handlers.response import answer, empty
from hyperfleet.kinds import Key, PerKind
from hyperfleet.resources import removal, resource
from hyperfleet.resources.resource import SET_STATUS, Held, Hold
from hyperfleet.resources.snapshot import FREE, look
from hyperfleet.service import Service
from hyperfleet.status.fold import Status, is_reconciled, same_but_for_times
from hyperfleet.status.report import Report, discard_reason, merge

logger = logging.getLogger(__name__)

# The stored report, and why it was discarded, if it was.
Taken: TypeAlias = tuple[bytes, str]

# How far an adapter's clock may be ahead.
TOLERANCE = timedelta(minutes=5)
# Go's zero time, which a Go client sends if it sets none.
UNSAID = datetime.min.replace(tzinfo=UTC)

GIVEN = """/* {table}_report */
WITH given AS (
    SELECT * FROM jsonb_to_recordset(%(rows)s) AS given
        (id uuid, version bigint, status jsonb, silent boolean, adapter text, observed_generation bigint,
         conditions jsonb, data jsonb, metadata jsonb,
         created_time timestamptz, last_report_time timestamptz)
)"""
STORE = """
INSERT INTO adapter_statuses
    (owner_type, owner_id, adapter, observed_generation, conditions, data, metadata,
     created_time, last_report_time)
SELECT '{kind}', id, adapter, observed_generation, conditions, data, metadata,
       created_time, last_report_time
FROM given WHERE {held}
ON CONFLICT (owner_type, owner_id, adapter) DO UPDATE SET
    observed_generation = excluded.observed_generation, conditions = excluded.conditions,
    data = excluded.data, metadata = excluded.metadata, last_report_time = excluded.last_report_time
RETURNING owner_id::text, document::bpchar
"""
STORE_LOCKED = PerKind(
    GIVEN.replace("_report */", "_report_locked */") + STORE.replace("{held}", "true")
)
# ``silent`` tells the triggers of the feed and of the transitions whether the version has news.
UNCHANGED = """, held AS (
    UPDATE {table} SET status = given.status, version = {table}.version + 1,
        silent = ({table}.version + 1) * CASE WHEN given.silent THEN 1 ELSE -1 END
    FROM given WHERE {table}.id = given.id AND {table}.id = ANY(ARRAY(SELECT id FROM free))
    RETURNING {table}.id
)
"""
STORE_AT_ONCE = PerKind(
    GIVEN + FREE + UNCHANGED + STORE.replace("{held}", "id IN (SELECT id FROM held)")
)


def report(kind: str, key: Key, body: dict[str, Any]) -> Response:
    """Stores or discards a report on the resource with this key."""
    observed, faults = _observed_time(body)
    faults += _repetitions(body["conditions"])
    if faults:
        raise Problem(INVALID, faults=faults)
    given: Any = {**body, "observed_time": observed}
    shape = request.shape("AdapterStatus")
    service, key, taken = request.service(), request.scoped(key), None
    while taken is None:
        taken = _take(service, kind, key, given)
    document, discarded = taken
    service.events.reported(kind, discarded or "accepted")
    if discarded:
        return empty(204, {"X-Discard-Reason": discarded})
    return answer(shape.text(document), 201, shape.headers)


def _take(service: Service, kind: str, key: Key, report: Report) -> Taken | None:
    """Stores a report and the status that results, or says why it is discarded.

    Returns None if the resource was marked meanwhile, since its owners must be locked before it.
    """
    with service.turns.of(resource.queue(key)):
        found = look(service, kind, key)
        if found.state["deleted_time"]:
            # Whether it can be removed may depend on other resources.
            return _take_locked(service, kind, key, report, marked=True)
        taken = _take_at_once(service, kind, key, report, found)
        return taken or _take_locked(service, kind, key, report, marked=False)


def _take_at_once(service: Service, kind: str, key: Key, report: Report, found: Held) -> Taken | None:
    """Stores a report with one statement; returns None if the resource has changed or is locked.

    Also for a future generation: a standby may have shown it before the primary does, and the
    transaction that makes it still holds the lock.
    """
    if report["observed_generation"] > found.state["generation"]:
        return None
    held, merged, discarded = _judged(kind, found, report)
    if merged is None:
        return b"", discarded
    status = held.fold(merged["last_report_time"])
    silent = same_but_for_times(held.state["status"], status)
    values = {
        "id": key["id"],
        "version": held.state["version"],
        "status": status,
        "silent": silent,
        **merged,
    }
    row = wait_for(service.together(STORE_AT_ONCE[kind]).get(key["id"], values))
    if row is None:
        return None
    _count_start(service, kind, held.state["status"], status)
    return row[0], ""


def _take_locked(service: Service, kind: str, key: Key, report: Report, *, marked: bool) -> Taken | None:
    """Stores a report while its resource is locked, and the owners of a marked one.

    :param marked: whether it was marked when found; only such a resource can be removed by a report
    """
    with transaction(service.pool) as conn:
        above = removal.lock_above(conn, kind, key) if marked else None
        # Reports in other processes queue here, for the lock on the row.
        held = Hold(conn, kind, key, service.foldings[kind]).found()
        if held.state["deleted_time"] and not marked:
            return None
        held, merged, discarded = _judged(kind, held, report)
        if merged is None:
            return b"", discarded
        at = merged["last_report_time"]
        document = conn.execute(STORE_LOCKED[kind], {"rows": Jsonb([{"id": key["id"], **merged}])})
        if marked and held.ended():
            status, gone = None, [(kind, key["id"])]
            origin = request.origin()
            removal.remove(conn, kind, key["id"], origin=origin)
            gone += removal.settle(conn, above() if above else [], at, service.foldings, origin)
        else:
            status = held.fold(at)
            conn.execute(SET_STATUS[kind], {"id": key["id"], "status": Jsonb(status)})
    if status is None:
        removal.log_removed(gone)
        removal.finish_targets(service, gone)
    else:
        _count_start(service, kind, held.state["status"], status)
    done = document.fetchone()
    assert done is not None
    return done[1], ""


def _count_start(service: Service, kind: str, before: Status, after: Status) -> None:
    if is_reconciled(before) and not is_reconciled(after):
        service.events.started(kind, deleting=False)


def _judged(kind: str, held: Held, report: Report) -> tuple[Held, Report | None, str]:
    """Returns a resource with a report among its own, and the report to be stored.

    If the report is not news, the latter is None, and the last value says why.
    """
    reports = {one["adapter"]: one for one in held.reports}
    stored = reports.get(report["adapter"])
    reason = discard_reason(held.state["generation"], stored, report)
    if reason:
        adapter, id_ = report["adapter"], held.state["id"]
        more = {"kind": kind, "id": id_, "adapter": adapter, "reason": reason}
        logger.info("report of %s on %s %s discarded: %s", adapter, kind, id_, reason, extra=more)
        return held, None, reason
    # If this clock is behind another replica's, the report must still not be older than the last one.
    last = stored["last_report_time"] if stored else ""
    at = report["observed_time"] or max(times.now(), last)
    merged = reports[report["adapter"]] = merge(stored, report, at)
    return held._replace(reports=[*reports.values()]), merged, ""


def _repetitions(conditions: list[dict[str, Any]]) -> list[Fault]:
    seen: dict[str, int] = {}
    faults: list[Fault] = []
    for index, condition in enumerate(conditions):
        first = seen.setdefault(condition["type"], index)
        if first != index:
            message = f"repeats the type of conditions[{first}]; a type may occur once"
            faults.append(
                {"field": f"conditions[{index}].type", "message": message, "constraint": "unique"}
            )
    return faults


def _observed_time(body: dict[str, Any]) -> tuple[str | None, list[Fault]]:
    """Returns the time at which the adapter looked, if it says so, and any faults of that time."""
    sent = body.get("observed_time")
    if sent is None:
        return None, []
    fault = with_value({"field": "observed_time", "message": "", "constraint": "format"}, sent)
    try:
        moment = datetime.fromisoformat(sent.upper())
        text = times.timestamp(moment)
    except (ValueError, OverflowError):
        fault["message"] = "must be a time between the years 1 and 9999, and no leap second"
        return None, [fault]
    if moment == UNSAID:
        return None, []
    if moment > datetime.now(UTC) + TOLERANCE:
        fault["message"] = "must be at most 5 minutes ahead of the service's clock"
        fault["constraint"] = "maximum"
        return None, [fault]
    return text, []
