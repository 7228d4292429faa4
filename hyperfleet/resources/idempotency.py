"""Idempotent creation: a repeated request with the same key gets the first response again.

Follows the IETF draft "The Idempotency-Key HTTP Header Field".
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hyperfleet import times
from hyperfleet.database.connection import Connection
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import transaction
from hyperfleet.errors import KEY_REUSED, Problem

# The key is claimed before anything is created, so that a second request with the same key waits here
# for the first to end. A key that is more than a day old can be claimed again.
CLAIM = """/* idempotency_keys_claim */
INSERT INTO idempotency_keys (caller, key, request, created_time)
VALUES (%(by)s, %(key)s, %(request)s, %(at)s)
ON CONFLICT (caller, key) DO UPDATE
    SET request = excluded.request, created_time = excluded.created_time
    WHERE idempotency_keys.created_time < excluded.created_time - interval '24 hours'
RETURNING true
"""

# A separate statement, so that it sees what the first request has committed.
FIRST = (
    "/* idempotency_keys_read */ SELECT request, document::bpchar, location FROM idempotency_keys "
    "WHERE caller = %(by)s AND key = %(key)s"
)

KEEP = """/* idempotency_keys_keep */
UPDATE idempotency_keys SET document = %(document)s, location = %(location)s
WHERE caller = %(by)s AND key = %(key)s
"""

FREE = """/* idempotency_keys_free */
DELETE FROM idempotency_keys WHERE caller = %(by)s AND key = %(key)s
"""

# A few at a time, so that no single request has to delete a whole day's keys.
FORGET = """/* idempotency_keys_forget */
DELETE FROM idempotency_keys WHERE (caller, key) IN (
    SELECT caller, key FROM idempotency_keys
    WHERE created_time < %(at)s::timestamptz - interval '24 hours'
    ORDER BY created_time LIMIT 10 FOR UPDATE SKIP LOCKED
)
"""


class Once(NamedTuple):
    """What identifies a request that is to be carried out only once.

    :param key: the client's Idempotency-Key
    :param path: the request's path
    :param body: the request's body
    :param tenant: the caller's tenant as text; each tenant has keys of its own
    """

    key: str
    path: str
    body: Any
    tenant: str

    def claimant(self, by: str) -> str:
        """Returns the owner of the key. The separator is safe: no name contains a line break."""
        return f"{by}\n{self.tenant}" if self.tenant else by


def create(
    pool: Pool,
    once: Once,
    by: str,
    insert: Callable[[Connection], Sequence[Any] | None],
    location: str,
) -> tuple[Sequence[Any] | None, str]:
    """Creates a resource in a transaction, once per key.

    :param by: the caller's identity
    :param insert: creates the resource; returns a row that begins with its id and its document; if
        nothing was created, either the document or the row is None
    :param location: the address of the new resource
    :return: the row without the id, and the location; for a repeated request, those of the first one
    Raises Problem if the key was used for a different request.
    """
    request = hashlib.sha256(json.dumps([once.path, once.body], sort_keys=True).encode()).digest()
    claim = {"by": once.claimant(by), "key": once.key, "request": request, "at": times.now()}
    with transaction(pool) as conn:
        claimed = conn.execute(CLAIM, claim)
        first = conn.execute(FIRST, claim)
        if claimed.fetchone() is None:
            known = first.fetchone()
            assert known is not None
            if bytes(known[0]) != request:
                raise Problem(KEY_REUSED)
            return (known[1],), known[2]
        row = insert(conn)
        if row is None or row[1] is None:
            # Nothing was created, so the key stays free.
            conn.execute(FREE, claim)
        else:
            conn.execute(KEEP, {**claim, "document": row[1].decode(), "location": location})
            conn.execute(FORGET, claim)
    return row and row[1:], location
