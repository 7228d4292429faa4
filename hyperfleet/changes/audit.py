"""What is recorded of a change, in the same transaction: who asked for it, when, how and why."""

from typing import Any, LiteralString, NamedTuple

from hyperfleet.auth.identity import SYSTEM


class Origin(NamedTuple):
    """Where a change comes from.

    :param by: the identity of the caller
    :param request: the request's id
    :param reason: the reason given in the request
    """

    by: str
    request: str | None = None
    method: str | None = None
    path: str | None = None
    reason: str | None = None

    def values(self) -> dict[str, Any]:
        """Returns the members by the names that statements use."""
        return self._asdict()


# For changes that no request asks for.
UNASKED = Origin(SYSTEM)

# Parts to append to statements. This one records created resources, each from its given values.
CREATED: LiteralString = """, recorded AS (
    INSERT INTO audit
        (time, actor, action, resource_type, resource_id, name, generation, request, method, path,
         tenancy)
    SELECT given.at, given.by, 'create', '{kind}', created.id, given.name, 1, given.request,
           given.method, given.path, created.tenancy
    FROM created JOIN given ON given.id = created.id
)
"""
# Records changed resources, each from its given values.
CHANGED_EACH: LiteralString = """, recorded AS (
    INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                       request, method, path, tenancy)
    SELECT given.at, given.by, given.action, given.reason, '{kind}', changed.id, changed.name,
           changed.generation, given.request, given.method, given.path, changed.tenancy
    FROM changed JOIN given ON given.id = changed.id
)
"""
# Records resources that were all changed in the same way.
CHANGED: LiteralString = """, recorded AS (
    INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                       request, method, path, tenancy)
    SELECT %(at)s, %(by)s, %(action)s, %(reason)s, '{kind}', changed.id, changed.name,
           changed.generation, %(request)s, %(method)s, %(path)s, changed.tenancy
    FROM changed
)
"""
# Records removed resources.
GONE: LiteralString = """, recorded AS (
    INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                       request, method, path, document, tenancy)
    SELECT %(at)s, %(by)s, 'remove', %(reason)s, '{kind}', gone.id, gone.name, gone.generation,
           %(request)s, %(method)s, %(path)s, gone.document, gone.tenancy
    FROM gone
)
"""
# A statement that records resources before they are removed by force.
FORCED: LiteralString = """/* audit_add */
INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                   request, method, path, document, tenancy)
SELECT %(at)s, %(by)s, 'force-delete', %(reason)s, '{kind}', id, name, generation,
       %(request)s, %(method)s, %(path)s, {document}, tenancy
FROM {table} WHERE id = ANY(%(ids)s)
"""
