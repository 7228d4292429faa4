"""A resource as it is at one moment: read for all who ask at the same time, and not locked.

Whatever changes a resource or a report on it raises its version. So whoever has looked writes with a
statement that does nothing where the version is another by then, and looks under a lock in that case.
"""

from collections.abc import Mapping
from typing import Any, LiteralString

from hyperfleet.engine.greenlets import wait_for
from hyperfleet.kinds import both
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

# Specs of resources whose text is longer are not read here: many may look at the same time, and each
# has what it finds in memory. The length of a text is known without reading it.
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
LOOK = both(_LOOK.replace("{data}", "").replace("{seen}", ""))
# The same with what rules of mapped conditions look at;
LOOK_SEEN = both(_LOOK.replace("{data}", ", data").replace("{seen}", SEEN_COLUMNS))
# with what can be changed; and with both.
_WHOLE: LiteralString = _LOOK.replace("_state */", "_whole */").replace("{seen}", _SHORT)
LOOK_WHOLE = both(_WHOLE.replace("{data}", ""))
LOOK_WHOLE_SEEN = both(_WHOLE.replace("{data}", ", data"))

# Goes on behind what is ``given``, with the version of each. Nobody is waited for: of several resources,
# one that is locked must not keep the others waiting.
FREE: LiteralString = """, free AS (
    SELECT {table}.id FROM {table} JOIN given USING (id)
    WHERE {table}.id = ANY(%(ids)s::uuid[]) AND {table}.version = given.version AND deleted_time IS NULL
    FOR NO KEY UPDATE OF {table} SKIP LOCKED
)"""


def look(service: Service, kind: str, key: Mapping[str, Any], *, whole: bool = False) -> Held:
    """A resource with the reports on it; what belongs to it is not counted.

    :param key: as :func:`hyperfleet.handlers.operations.key` makes it
    :param whole: whether its state has its name, its labels, and its spec, which is None where it is
        large
    Raises Problem where it is not.
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
