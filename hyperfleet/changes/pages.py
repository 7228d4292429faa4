"""A page of the feed: its statement, rows and text."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg.errors import InvalidParameterValue
from psycopg.types.json import Jsonb

from hyperfleet.database.pool import Pool
from hyperfleet.database.reads import Reads
from hyperfleet.database.statements import fetch, filled
from hyperfleet.errors import GONE, Problem
from hyperfleet.kinds import ALL, KINDS, RESOURCES
from hyperfleet.lists import referring, search
from hyperfleet.lists.page import BYTES, most
from hyperfleet.lists.place import CHECKED, KNOWN, NOW, Place
from hyperfleet.lists.projection import Shape
from hyperfleet.lists.search import Condition
from hyperfleet.lists.trouble import searching
from hyperfleet.settings import tenancy

# Rows that one page scans at most, which bounds the cost of a filter that lets almost nothing through.
SCANNED = 1000

# No row can appear before these: see the migration that creates the table. A place is known by its row,
# or if that was the last one removed, by the columns of feeds. The row of ``at`` is always there and
# says where the feed is. Large documents are left for the next page. The place comes from subqueries,
# kinds in an array of one length, and unused filters are left out, so that a plan for the given values
# is no better than the generic one, which is kept. The rows are sorted before their documents are looked
# up, so that no more of these are read than the page has.
PAGE = """/* changes */
WITH scanned AS MATERIALIZED (
    SELECT *, {checked} AS checked FROM changes
    WHERE (position, sequence) > ((SELECT %(position)s::xid8), (SELECT %(sequence)s::bigint))
      AND position < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY position, sequence LIMIT {scanned}
), matched AS (
    SELECT * FROM (
        SELECT scanned.*, item.document
        FROM (SELECT * FROM scanned ORDER BY position, sequence) AS scanned LEFT JOIN LATERAL (
            SELECT {document} AS document FROM {table}
            WHERE {table}.id = scanned.id AND scanned.change <> 'removed' AND {condition} {only} {theirs}
        ) AS item ON true
        WHERE scanned.kind = ANY(%(kinds)s::text[]) {scope} {owner} {searched}
        ORDER BY position, sequence LIMIT {most}
    ) AS beginning LIMIT %(limit)s
), item AS (
    SELECT *, row_number() OVER rows AS number, sum(octet_length(document)) OVER rows AS until
    FROM matched WINDOW rows AS (ORDER BY position, sequence)
)
SELECT at.now, at.fits, at.epoch, at.known, at.last, at.found,
       concat_ws(' ', position, sequence, checked), change, kind, id::text, owner_id::text, name,
       generation, version, hyperfleet_time(time), by,
       document::bpchar
FROM (
    SELECT ({now}) AS now, {fits} AS fits, replace(epoch::text, '-', '') AS epoch,
           {known} AS known,
           (SELECT concat_ws(' ', position, sequence, checked) FROM scanned
            ORDER BY position DESC, sequence DESC LIMIT 1) AS last,
           (SELECT count(*) FROM matched) AS found
    FROM feeds ORDER BY since DESC LIMIT 1
) AS at LEFT JOIN item ON item.number = 1 OR item.until <= {bytes} OR item.until IS NULL
ORDER BY item.position, item.sequence
"""
# Filters for a search and for an owner; a removed resource passes the search.
SEARCHED = "AND (scanned.change = 'removed' OR item.document IS NOT NULL)"
OWNER = "AND scanned.owner_id = %(owner_id)s::uuid"
# Whether the rows are this server's own, like the function hyperfleet_feed_fits(), which would be
# planned anew for each page. Looks at the last row, which an index yields whatever the planner knows: it
# would scan the whole table for a row beyond a position before the first ANALYZE.
FITS = """(server = (SELECT system_identifier FROM pg_control_system())
    AND coalesce((SELECT position FROM changes ORDER BY position DESC, sequence DESC LIMIT 1)
                 <= pg_snapshot_xmax(pg_current_snapshot()), true))"""
# What a tenant's caller sees.
SCOPE = "AND scanned.tenancy @> %(tenancy)s"
# An operator may have moved a resource to another tenant since; its current document is shown.
THEIRS = "AND {table}.tenancy @> %(tenancy)s"
STATE = "/* changes_state */ SELECT pg_xact_status(%(position)s::xid8)"
ANEW = "/* changes_anew */ SELECT hyperfleet_feed_anew(false)"

MEMBERS = ("change", "kind", "id", "owner_id", "name", "generation", "version", "time", "by")


class Wanted(NamedTuple):
    """What a client wants to hear of.

    :param kind: the kind of resources, or None for all
    :param owner_id: their owner, or None for any
    :param search: a condition for them; ``expression`` is its text, including what they refer to
    :param shape: what is shown of them; ``fields`` is its text
    :param tenant: the caller's tenancy; empty if it sees everything
    """

    kind: str | None
    owner_id: str | None
    search: Condition
    expression: str
    shape: Shape
    fields: str
    limit: int
    tenant: Mapping[str, str]

    @property
    def key(self) -> tuple[Any, ...]:
        """A key that is the same for all that want the same."""
        shown = (self.shape.agent, self.fields, self.limit)
        return self.kind, self.owner_id, self.expression, *shown, tenancy.text(self.tenant)


class Item(NamedTuple):
    """A change: the place after it, its type, and its JSON text."""

    place: Place
    change: str
    text: bytes


@dataclass
class Page:
    """Changes, oldest first, and the place after which the next page begins."""

    items: list[Item]
    next: Place

    @functools.cached_property
    def text(self) -> bytes:
        """The JSON text of the page, made once however many clients get it."""
        items = b",".join(item.text for item in self.items)
        return b'{"kind":"ChangeList","items":[%b],"next":"%b"}' % (items, self.next.token.encode())

    @functools.cached_property
    def events(self) -> bytes:
        """The same as server-sent events; one without data moves past rows that are not shown."""
        events = [
            b"id: %b\nevent: %b\ndata: %b\n\n"
            % (item.place.token.encode(), item.change.encode(), item.text)
            for item in self.items
        ]
        if not self.items or self.items[-1].place != self.next:
            events.append(b"id: %b\n\n" % self.next.token.encode())
        return b"".join(events)


def searched(
    expression: str, kind: str | None, referring_to: Mapping[str, str] | None = None
) -> Condition:
    """Returns the condition for a search and for what resources refer to. Raises Problem.

    Rows are found by id, so labels are read from the row: a planner without good statistics would look
    them up by going through all labels for each row.
    """
    of = kind or ALL
    found = search.asked(expression, of, lookup=False)
    return found.joined(*referring.held(of, referring_to or {}), steady=not found.sql)


def plan(wanted: Wanted, after: Place | None) -> tuple[str, dict[str, Any]]:
    """Returns the statement for the page after a place, and its values; None means the feed's end."""
    kind = wanted.kind or ALL
    of = KINDS[kind]
    place = after._asdict() if after else {"position": None, "sequence": None, "check": None}
    condition = wanted.search.sql or "true"
    statement = PAGE.format(
        table=of.table,
        only=of.only,
        document=of.document,
        condition=condition,
        scanned=SCANNED,
        most=most(wanted.limit),
        owner=OWNER if wanted.owner_id else "",
        searched=SEARCHED if wanted.search.sql else "",
        fits=FITS,
        scope=SCOPE if wanted.tenant else "",
        theirs=THEIRS.format(table=of.table) if wanted.tenant else "",
        now=NOW,
        known=KNOWN,
        checked=CHECKED,
        bytes=BYTES,
    )
    values = {
        **wanted.search.values,
        **place,
        "position": str(after.position) if after else None,
        "kinds": filled([wanted.kind] if wanted.kind else RESOURCES),
        "owner_id": wanted.owner_id,
        "tenancy": Jsonb(wanted.tenant),
        "limit": wanted.limit,
    }
    return statement, values


async def read(
    reads: Reads, wanted: Wanted, after: Place | None, *, newest: bool = False, position: str = ""
) -> Page:
    """Returns the page after a place; for None, an empty one at the end of the feed.

    :param newest: whether a standby may be too far behind
    :param position: what :meth:`Reads.fetch` calls ``after``
    Raises Problem if the feed does not know the place, or no longer does.
    """
    page = await _of_one_server(reads, wanted, after, newest=newest, position=position)
    coming = False
    if not page and after:
        # A standby may not have the place yet, or the primary may not show it yet.
        coming = await under_way(reads.primary, after)
    page = page or await _of_one_server(reads, wanted, after, newest=True)
    if not page and after and coming:
        page = Page([], after)
    if not page:
        raise Problem(GONE)
    return page


async def under_way(primary: Pool, place: Place) -> bool:
    """Returns whether the transaction that made a place is still running.

    A standby shows a commit once it has replayed it; the primary first waits for its disk and standbys.
    """
    try:
        [(state,)] = await fetch(primary, STATE, {"position": str(place.position)})
    except InvalidParameterValue:
        # No such transaction yet: the place is from before the server was set back.
        return False
    return bool(state == "in progress")


async def _of_one_server(
    reads: Reads, wanted: Wanted, after: Place | None, *, newest: bool, position: str = ""
) -> Page | None:
    """Does the same as :func:`read` on one server; None if it lacks the place or has another's feed."""
    statement, values = plan(wanted, after)
    prepare, searched = wanted.search.prepare, bool(wanted.search.sql)
    with searching(searched, reads.primary.statement_timeout):
        # A statement with a search may take long.
        if newest:
            rows = await reads.newest(statement, values, prepare, few=searched)
        else:
            rows = await reads.fetch(statement, values, prepare, position, few=searched)
    now, fits, epoch, known, last, found = rows[0][:6] if rows else (None, False, "", False, None, 0)
    if not fits:
        # A dump of another server was restored here, whose transaction ids do not fit.
        await fetch(reads.primary, ANEW, {})
        return None
    if after and not (known and epoch == after.epoch):
        return None
    if after is None:
        return Page([], Place.parse(now))
    items = [_item(wanted, epoch, row[6:]) for row in rows if row[7] is not None]
    end = Place.parse(f"{epoch} {last}") if last else after
    return Page(items, items[-1].place if found == wanted.limit or len(items) < found else end)


def _item(wanted: Wanted, epoch: str, row: Any) -> Item:
    place, *members, document = row
    known = dict(zip(MEMBERS, members, strict=True))
    given = {name: value for name, value in known.items() if value is not None}
    text = json.dumps(given, separators=(",", ":")).encode()
    if document is not None:
        text = b'%b,"resource":%b}' % (text[:-1], wanted.shape.text(bytes(document)))
    return Item(Place.parse(f"{epoch} {place}"), known["change"], text)
