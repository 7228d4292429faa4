"""The JSON text of a page, as a whole or in pieces."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from hyperfleet.kinds import ALL, BASE
from hyperfleet.lists.continuation import Continuation
from hyperfleet.lists.page import BYTES, Found, Unread, Wanted, Within
from hyperfleet.lists.projection import Shape

# The parameters of a list that the feed of changes also takes.
WANTED = ("kind", "search", "ref_type", "ref_target_id", "fields")


class Long(NamedTuple):
    """A page with documents still to be read: ``head`` is the text before the items.

    :param items: those read already are in the form that is shown
    :param link: the URL of the next page; ``changes``, that of the changes since this page was read
    """

    head: str
    items: list[bytes | Unread]
    link: str
    changes: str = ""


def text(
    kind: str, wanted: Wanted, found: Found, shape: Shape, path: str, query: Sequence[tuple[str, str]]
) -> bytes | Long:
    """Returns the JSON text of a page, or the known part of it, which :func:`stream` completes.

    :param shape: which members of the items are shown
    :param path: the request's path, and its ``query``, from which the link to the next page is made
    """
    link = ""
    # A client that has fields left out by default does not know the member next either.
    if found.last is not None and not shape.agent:
        token = Continuation.token(wanted.number + 1, found.last)
        kept = [(name, value) for name, value in query if name not in ("page", "continue")]
        link = f"{path}?{urlencode([*kept, ('continue', token)])}"
    whole = [shape.text(one) for one in found.documents if isinstance(one, bytes)]
    if len(whole) == len(found.documents):
        return render(kind, wanted.number, found.total, whole, link)
    shown = iter(whole)
    items = [next(shown) if isinstance(one, bytes) else one for one in found.documents]
    head = f'{{"kind":"{kind}List","page":{wanted.number},{_counted(found.total)}'
    return Long(head, items, link)


def changes(
    kind: str, found: Found, shape: Shape, query: Sequence[tuple[str, str]], within: Within
) -> str:
    """Returns the URL of the changes since a page was read; empty for a client with default fields.

    :param query: the request's parameters; the feed takes those that select items and their members
    """
    if found.place is None or shape.agent:
        return ""
    of = [] if kind == ALL else [("kind", kind)]
    owner = [("owner_id", within.values["owner_id"])] if "owner_id" in within.values else []
    kept = [(name, value) for name, value in query if name in WANTED and (value or name != "kind")]
    return f"{BASE}/changes?{urlencode([*of, *owner, *kept, ('after', found.place.token)])}"


def linked(text: bytes, changes: str) -> bytes:
    """Returns the text of a page with the member ``changes`` added, which its entity tag ignores."""
    if not changes:
        return text
    # A slice would copy the page once more, which may be megabytes long.
    return b"".join([memoryview(text)[:-1], f"{_member('changes', changes)}}}".encode()])


def stream(page: Long, read: Callable[[list[str]], Mapping[str, bytes]]) -> Iterator[bytes]:
    """Yields the JSON text of a long page in pieces, reading each one on demand.

    An item is shown as it is when it is read. One that is gone by then is left out, so ``size`` is known
    only at the end.

    :param read: finds items by their identities, in the form that is shown
    """
    head, size = page.head.encode(), 0
    links = _member("next", page.link) + _member("changes", page.changes)
    # What the client has received is released while it is receiving the rest.
    items = deque(page.items)
    del page
    yield head + b'"items":['
    while items:
        ready, unread = _batch(items)
        found = read([one.identity for one in unread]) if unread else {}
        ready += [found[one.identity] for one in unread if one.identity in found]
        del found
        before, size = size, size + len(ready)
        # No reference to the piece may remain here: it would be kept until the client has received it.
        yield _joined(ready, comma=bool(before and ready))
    yield f'],"size":{size}{links}}}'.encode()


def _joined(documents: list[bytes], *, comma: bool) -> bytes:
    text = b"".join([b"," * comma, *_commas(documents)])
    documents.clear()
    return text


def _batch(items: deque[bytes | Unread]) -> tuple[list[bytes], list[Unread]]:
    """Takes from the front the items at hand, or else as many others as may be in memory at once."""
    ready: list[bytes] = []
    unread: list[Unread] = []
    size = 0
    while items:
        one = items[0]
        if isinstance(one, bytes):
            if unread:
                break
            ready.append(one)
        else:
            size += one.size
            if ready or (unread and size > BYTES):
                break
            unread.append(one)
        items.popleft()
    return ready, unread


def render(kind: str, number: int, total: int | None, documents: list[bytes], link: str = "") -> bytes:
    """Returns the JSON text of a list; the documents are inserted as they are."""
    head = f'{{"kind":"{kind}List","page":{number},"size":{len(documents)},{_counted(total)}'
    # Joined only once, since a page may be megabytes long.
    return b"".join(
        [head.encode(), b'"items":[', *_commas(documents), f"]{_member('next', link)}}}".encode()]
    )


def _counted(total: int | None) -> str:
    return "" if total is None else f'"total":{total},'


def _member(name: str, link: str) -> str:
    return f',"{name}":{json.dumps(link)}' if link else ""


def _commas(documents: list[bytes]) -> Iterator[bytes]:
    for index, one in enumerate(documents):
        if index:
            yield b","
        yield one
