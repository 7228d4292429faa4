"""The operation on the feed of changes."""

from collections.abc import Mapping
from functools import partial

from hyperfleet.changes import pages
from hyperfleet.changes.pages import Page, Wanted
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.engine.response import Later, Response
from hyperfleet.errors import bad_parameter
from hyperfleet.handlers import request
from hyperfleet.handlers.response import answer
from hyperfleet.kinds import ALL, RESOURCES, known_id
from hyperfleet.lists.place import Place
from hyperfleet.lists.trouble import unknown_kind

# The longest that a request waits, in seconds, although 60 may be asked for: many proxies give up after
# 50 or 60, and nginx then asks the next replica, and avoids the one that it has waited for.
LONGEST = 45


def get_changes(
    *, after: str = "", wait: int | None = None, limit: int, fields: str = "", **filters: str
) -> Response | Later:
    """Returns the changes after a place, waiting for some if asked to, or streams them as they come."""
    wanted = _wanted(filters, fields, limit)
    headers = dict(wanted.shape.headers)
    seconds = wait or 0
    if wait is None and (preferred := request.preferred("wait")) is not None and preferred.isdecimal():
        seconds = min(int(preferred[:9]), LONGEST)
        headers["Preference-Applied"] = f"wait={seconds}"
    streams, feed = request.streams(), request.service().feed
    known = request.last_event() if streams else ""
    place = Place.of(known, "Last-Event-ID") if known else Place.of(after, "after") if after else None
    if seconds or streams:
        feed.waiting.admit()
    if place and (seconds or streams) and feed.waiting.idle(place):
        page = Page([], place)
    else:
        page = wait_for(feed.page(wanted, place, request.reader().after))
    if streams:
        # Keeps proxies from buffering events that should arrive at once.
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        headers["Content-Type"] = "text/event-stream"
        return Later(headers, pieces=feed.stream(wanted, page))
    if page.items or not seconds:
        return answer(page.text, 200, headers)
    headers["Content-Type"] = "application/json"
    return Later(headers, partial(feed.later, wanted, page, min(seconds, LONGEST)))


def _wanted(filters: Mapping[str, str], fields: str, limit: int) -> Wanted:
    kind, owner_id, expression = filters.get("kind"), filters.get("owner_id"), filters.get("search", "")
    if kind is not None and kind not in RESOURCES:
        raise unknown_kind(kind)
    if owner_id is not None and not (owner_id := known_id(owner_id)):
        raise bad_parameter("owner_id", "must be the id of a resource", filters["owner_id"])
    condition = pages.searched(expression, kind, filters)
    shape = request.shape(kind or ALL)
    asked = str([expression.strip(), filters.get("ref_type"), filters.get("ref_target_id")])
    return Wanted(kind, owner_id, condition, asked, shape, fields, limit, request.tenant())
