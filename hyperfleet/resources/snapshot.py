"""A resource as it is at one moment: read without a lock, once for all who ask at the same time.

Every change of a resource or of a report on it raises its version. A writer that has read a version uses
a statement that does nothing if the version has changed since, and then tries again under a lock.
"""

from typing import Any, LiteralString

from hyperfleet.engine.greenlets import wait_for
from hyperfleet.kinds import Key, PerKind
from hyperfleet.resources.resource import (
    REPORT,
    REPORT_SEEN,
    SEEN,
    SEEN_COLUMNS,
    STATE,
    Held,
    not_found,
    sees,
)
from hyperfleet.service import Service

# A spec is not read here if its resource's text is longer: many requests may read at the same time, and
# each keeps its result in memory. PostgreSQL knows the length of a text without reading it.
LONGEST = 32_768

_LOOK: LiteralString = """/* {table}_state */
SELECT id::text, version, generation, status, hyperfleet_time(created_time),
       hyperfleet_time(updated_time), hyperfleet_time(deleted_time), {owner}::text,
       (SELECT json_agg(json_build_array(adapter, observed_generation, conditions,
                                         hyperfleet_time(adapter_statuses.created_time),
                                         hyperfleet_time(last_report_time){data}))
        FROM adapter_statuses WHERE owner_type = '{kind}' AND owner_id = {table}.id){seen} {tenancy}
FROM {table} WHERE id = ANY(%(ids)s::uuid[]) {only}
"""
_SHORT: LiteralString = f", name, labels, CASE WHEN octet_length(document) <= {LONGEST} THEN spec END"
LOOK = PerKind(_LOOK.replace("{data}", "").replace("{seen}", ""))
# The same with what rules of mapped conditions need;
LOOK_SEEN = PerKind(_LOOK.replace("{data}", ", data").replace("{seen}", SEEN_COLUMNS))
# with what can be changed; and with both.
_WHOLE: LiteralString = _LOOK.replace("_state */", "_whole */").replace("{seen}", _SHORT)
LOOK_WHOLE = PerKind(_WHOLE.replace("{data}", ""))
LOOK_WHOLE_SEEN = PerKind(_WHOLE.replace("{data}", ", data"))

# Follows ``given``, which has the version of each resource. It skips locked ones: they must not make the
# others in the statement wait.
FREE: LiteralString = """, free AS (
    SELECT {table}.id FROM {table} JOIN given USING (id)
    WHERE {table}.id = ANY(%(ids)s::uuid[]) AND {table}.version = given.version AND deleted_time IS NULL
    FOR NO KEY UPDATE OF {table} SKIP LOCKED
)"""


def look(service: Service, kind: str, key: Key, *, whole: bool = False) -> Held:
    """Returns a resource with the reports on it; its children are not counted.

    :param whole: whether to read its name, labels and spec; the spec is None if the resource is large
    Raises Problem if the resource does not exist.
    """
    folding = service.foldings[kind]
    seen = folding.rules is not None
    plain, more = (LOOK_WHOLE, LOOK_WHOLE_SEEN) if whole else (LOOK, LOOK_SEEN)
    statement = more if seen else plain
    found = wait_for(service.together(statement.of(kind, key)).get(key["id"]))
    if found is None:
        raise not_found(kind, key["id"])
    columns = (*STATE[1:], "reports", *(SEEN if seen or whole else ()))
    state: Any = {"id": key["id"], **dict(zip(columns, found, strict=False))}
    if key.get("owner_id") not in (None, state["owner_id"]) or not sees(key, found[len(columns) :]):
        raise not_found(kind, key["id"])
    members = REPORT_SEEN if seen else REPORT
    reports: list[Any] = [dict(zip(members, row, strict=True)) for row in state.pop("reports") or ()]
    return Held(state, reports, 0, folding)
