"""What is recorded of a change, in its transaction: who asked for it, when, how and why."""

from typing import Any, LiteralString, NamedTuple

from hyperfleet.auth.identity import SYSTEM


class Origin(NamedTuple):
    """Where a change comes from.

    :param by: who asks for it
    :param request: the id of the request
    :param reason: what whoever asks says of it
    """

    by: str
    request: str | None = None
    method: str | None = None
    path: str | None = None
    reason: str | None = None

    def values(self) -> dict[str, Any]:
        """The same, as statements call it."""
        return self._asdict()


# Of what no request asks for.
SERVICE = Origin(SYSTEM)

# Parts of statements, behind others: what records resources that were created, from what was given;
CREATED: LiteralString = """, recorded AS (
    INSERT INTO audit
        (time, actor, action, resource_type, resource_id, name, generation, request, method, path,
         tenancy)
    SELECT given.at, given.by, 'create', '{kind}', created.id, given.name, 1, given.request,
           given.method, given.path, created.tenancy
    FROM created JOIN given ON given.id = created.id
)
"""
# each of those that were changed, from what was given;
CHANGED_EACH: LiteralString = """, recorded AS (
    INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                       request, method, path, tenancy)
    SELECT given.at, given.by, given.action, given.reason, '{kind}', changed.id, changed.name,
           changed.generation, given.request, given.method, given.path, changed.tenancy
    FROM changed JOIN given ON given.id = changed.id
)
"""
# those that were changed alike;
CHANGED: LiteralString = """, recorded AS (
    INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                       request, method, path, tenancy)
    SELECT %(at)s, %(by)s, %(action)s, %(reason)s, '{kind}', changed.id, changed.name,
           changed.generation, %(request)s, %(method)s, %(path)s, changed.tenancy
    FROM changed
)
"""
# and those that are gone.
GONE: LiteralString = """, recorded AS (
    INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                       request, method, path, document, tenancy)
    SELECT %(at)s, %(by)s, 'remove', %(reason)s, '{kind}', gone.id, gone.name, gone.generation,
           %(request)s, %(method)s, %(path)s, gone.document, gone.tenancy
    FROM gone
)
"""
# Of those that go by force, before they do.
FORCED: LiteralString = """/* audit_add */
INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, name, generation,
                   request, method, path, document, tenancy)
SELECT %(at)s, %(by)s, 'force-delete', %(reason)s, '{kind}', id, name, generation,
       %(request)s, %(method)s, %(path)s, {document}, tenancy
FROM {table} WHERE id = ANY(%(ids)s)
"""
