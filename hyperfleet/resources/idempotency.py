"""Creations that may be repeated: the same key and request get the first answer again.

After the draft standard "The Idempotency-Key HTTP Header Field" of the IETF.
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

# The key is claimed before anything is created: a second request with it waits here for the first
# one's end. A key that is a day old may be claimed anew.
CLAIM = """/* idempotency_keys_claim */
INSERT INTO idempotency_keys (caller, key, request, created_time)
VALUES (%(by)s, %(key)s, %(request)s, %(at)s)
ON CONFLICT (caller, key) DO UPDATE
    SET request = excluded.request, created_time = excluded.created_time,
        document = NULL, location = NULL
    WHERE idempotency_keys.created_time < excluded.created_time - interval '24 hours'
RETURNING true
"""

# A statement of its own: it sees what the first request has written.
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

# A few at a time, so that no request pays for a day's keys.
FORGET = """/* idempotency_keys_forget */
DELETE FROM idempotency_keys WHERE (caller, key) IN (
    SELECT caller, key FROM idempotency_keys
    WHERE created_time < %(at)s::timestamptz - interval '24 hours'
    ORDER BY created_time LIMIT 10 FOR UPDATE SKIP LOCKED
)
"""


class Once(NamedTuple):
    """What makes a request one that is carried out once only.

    :param key: the client's; None: it may be carried out again
    :param path: of the request
    :param body: of the request
    :param tenant: who the caller is of, as text; keys of one tenant are not those of another
    """

    key: str | None
    path: str
    body: Any
    tenant: str = ""

    def claimant(self, by: str) -> str:
        """Whose the key is. No name has a line break."""
        return f"{by}\n{self.tenant}" if self.tenant else by


def create(
    pool: Pool,
    once: Once,
    by: str,
    insert: Callable[[Connection], Sequence[Any] | None],
    location: str,
) -> tuple[Sequence[Any] | None, str]:
    """Creates a resource in a transaction, once for each Idempotency-Key.

    :param by: who creates it
    :param insert: creates it; returns a row with the id and the document, which is None where nothing
        was created, or None where there is no place for it
    :param location: where the resource will be
    :return: what was returned after the id, and the location: both the first time's, when this is a
        repetition
    Raises Problem for a key that came with another request.
    """
    if once.key is None:
        with transaction(pool) as conn:
            row = insert(conn)
        return row and row[1:], location
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
