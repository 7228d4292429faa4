"""The JSON text of a page, at once or in pieces."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from hyperfleet.kinds import ALL, BASE
from hyperfleet.lists.continuation import Continuation
from hyperfleet.lists.page import BYTES, Found, Later, Wanted, Within
from hyperfleet.lists.projection import Shape

# The parameters of a list that the feed has, too.
WANTED = ("kind", "search", "ref_type", "ref_target_id", "fields")


class Long(NamedTuple):
    """A page whose documents are not all read yet: what is before its items, the items in the form that
    is shown, as far as they are read, and the addresses of the next page and of what changes from then
    on.
    """

    head: str
    items: list[bytes | Later]
    link: str
    changes: str = ""


def text(
    kind: str, wanted: Wanted, found: Found, shape: Shape, path: str, query: Sequence[tuple[str, str]]
) -> bytes | Long:
    """The JSON text of a page, or what is there of it; :func:`stream` finds the rest.

    :param shape: what is shown of its items
    :param path: of the request, and its ``query``, which lead to the next page
    """
    link = ""
    # A client whose answers are shortened unasked does not know the link either.
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
    """Where a client hears of what happens after a page was read; empty for who does not know the link.

    :param query: of the request, of which the feed takes what says which items, and what of them
    """
    if found.place is None or shape.agent:
        return ""
    of = [] if kind == ALL else [("kind", kind)]
    owner = [("owner_id", within.values["owner_id"])] if "owner_id" in within.values else []
    kept = [(name, value) for name, value in query if name in WANTED and (value or name != "kind")]
    return f"{BASE}/changes?{urlencode([*of, *owner, *kept, ('after', found.place.token)])}"


def linked(text: bytes, changes: str) -> bytes:
    """The text of a page with that address, which its entity tag does not stand for."""
    return text[:-1] + f"{_member('changes', changes)}}}".encode() if changes else text


def stream(page: Long, read: Callable[[list[str]], Mapping[str, bytes]]) -> Iterator[bytes]:
    """The pieces of the JSON text of a long page; each is read when it is asked for.

    An item is as it is when it is read; one that is gone by then is left out, so that their number is
    known at the end only.

    :param read: finds items by their identities, in the form that is shown
    """
    head, size = page.head.encode(), 0
    links = _member("next", page.link) + _member("changes", page.changes)
    # What the client has taken is not kept for as long as it takes the rest.
    items = deque(page.items)
    del page
    yield head + b'"items":['
    while items:
        ready, later = _batch(items)
        found = read([one.identity for one in later]) if later else {}
        ready += [found[one.identity] for one in later if one.identity in found]
        del found
        before, size = size, size + len(ready)
        # Nothing here may hold what is handed out: it is kept until the client has taken it.
        yield _joined(ready, comma=bool(before and ready))
    yield f'],"size":{size}{links}}}'.encode()


def _joined(documents: list[bytes], *, comma: bool) -> bytes:
    text = b"".join([b"," * comma, *_commas(documents)])
    documents.clear()
    return text


def _batch(items: deque[bytes | Later]) -> tuple[list[bytes], list[Later]]:
    """Takes from the items those at the beginning that are there, or as many of the others as may be in
    memory at once.
    """
    ready: list[bytes] = []
    later: list[Later] = []
    size = 0
    while items:
        one = items[0]
        if isinstance(one, bytes):
            if later:
                break
            ready.append(one)
        else:
            size += one.size
            if ready or (later and size > BYTES):
                break
            later.append(one)
        items.popleft()
    return ready, later


def render(kind: str, number: int, total: int | None, documents: list[bytes], link: str = "") -> bytes:
    """The JSON text of a list; the documents go in as they are."""
    head = f'{{"kind":"{kind}List","page":{number},"size":{len(documents)},{_counted(total)}'
    # Joined once: a page may have megabytes.
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
