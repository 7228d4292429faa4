"""Reads an original of any generation, or another instance of this service, over its REST API."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from multiprocessing.pool import ThreadPool
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import psycopg
import requests
from requests.adapters import HTTPAdapter
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry

from hyperfleet import times
from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.kinds import BASE, NATIVE
from hyperfleet.storable import storable
from hyperfleet.takeover.rows import BATCH, LABEL_VALUE, Raw, Refusal, Unreadable

T = TypeVar("T")

PAGE = 100
# Concurrent requests: the reports of each resource have to be requested separately.
TOGETHER = 8
TIMEOUT = 60
# How many times a list is read at most if its items shift while it is read.
TRIES = 3
# How often a request is repeated, and the most seconds to wait before each if the service asks for it.
RETRIES, PATIENCE = 3, 10.0


class NotJson(Unreadable):
    """Raised for a response that is not JSON, or not one of the API."""


class Patience(Retry):
    """Waits as long as the service asks for, but not forever."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """Returns the seconds to wait, at most PATIENCE; None if the response does not say."""
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, PATIENCE)


class Api:
    """The REST API of an original.

    For ``identity`` and ``certain``, see :class:`hyperfleet.takeover.database.Database`.

    :param url: its address, with or without the API's base path
    :param token: the bearer token; empty if none is needed
    """

    # Another service than before may answer at the address.
    certain = False

    def __init__(self, url: str, token: str) -> None:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise ConfigurationError(f"--from-api is not a URL: {error}.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("--from-api must be a URL such as https://HOST:PORT.")
        if parts.username or parts.password:
            raise ConfigurationError("--from-api must not hold a user or a password; see --token.")
        self.name = self.identity = url.rstrip("/").removesuffix(BASE)
        self._session = requests.Session()
        # Otherwise, a .netrc could replace the token.
        self._session.trust_env = False
        self._session.verify = _certificates()
        retry = Patience(
            RETRIES, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=TOGETHER, max_retries=retry))
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def open(self, _target: psycopg.Connection[Any]) -> str:
        """Requests a cluster; returns the source in words. Raises StartError if that fails."""
        try:
            answer = self.get(f"{BASE}/clusters", {"page": 1, "pageSize": 1})
        except Unreadable as error:
            raise StartError(str(error)) from None
        if answer is None or not isinstance(answer.get("items"), list):
            raise StartError(f"{self.name} does not answer like the HyperFleet API.")
        return f"the service {self.name}"

    @contextmanager
    def look(self, _since: str | None, _again: Collection[str]) -> Iterator["Look"]:
        """Yields a look at everything: its lists cannot be asked for changes only."""
        yield Look(self)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Returns the object at a path; None if there is nothing. Raises Unreadable."""
        try:
            response = self._session.get(
                self.name + path, params=query, timeout=TIMEOUT, allow_redirects=False
            )
            if response.status_code == 404:
                return None
            if response.status_code != 200:
                raise Unreadable(f"{self.name}{path} answers {response.status_code}.")
            answer = json.loads(response.content, parse_constant=_no_number)
        except ValueError as error:
            if isinstance(error, requests.RequestException):
                raise Unreadable(f"{self.name}{path} cannot be requested.") from None
            raise NotJson(f"{self.name}{path} does not answer with JSON.") from None
        except RecursionError:
            raise NotJson(f"{self.name}{path} answers with JSON of too many levels.") from None
        except requests.RequestException as error:
            reason = type(error).__name__
            raise Unreadable(f"{self.name}{path} cannot be read: {reason}.") from None
        if not isinstance(answer, dict):
            raise NotJson(f"{self.name}{path} does not answer with a JSON object.")
        return answer

    def items(self, path: str, *names: str) -> list[dict[str, Any]] | None:
        """Returns all items of a list, whatever the size of its pages; None if there is no such list.

        Raises Unreadable if they do not come to the list's total.

        :param names: the members that identify an item; the first that it has counts
        """
        found = self._all(path, names, lambda one: one)
        return None if found is None else list(found.values())

    def ids(self, kind: str) -> set[str]:
        """Returns the ids of all resources of a kind. Raises Unreadable if there is no such list."""
        found = self._all(_list(kind), ["id"], lambda _: None)
        if found is None:
            raise Unreadable(f"{self.name}{_list(kind)} answers 404.")
        return set(found)

    def each(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yields the resources of a kind, each once, while the list is read; holds no more than a page.

        Raises Unreadable if there is no such list, or if they do not come to its total.
        """
        path, given, shown, total = _list(kind), set[str](), 0, 1
        for _ in range(TRIES):
            shown = 0
            for items, told in self._pages(path, ["id"]):
                shown, total = shown + len(items), told
                yield from (one for id_, one in items.items() if id_ not in given)
                given |= items.keys()
            if shown >= total:
                return
        raise Unreadable(f"{self.name}{path} shows {shown} items, but its total is {total}.")

    def _all(
        self, path: str, names: Collection[str], keep: Callable[[dict[str, Any]], T]
    ) -> dict[str, T] | None:
        """Returns what ``keep`` makes of each item, by what identifies it; None without such a list."""
        found: dict[str, T] = {}
        total: int | None = None
        for _ in range(TRIES):
            found, total = {}, None
            for items, told in self._pages(path, names):
                total = told
                found |= {key: keep(one) for key, one in items.items()}
            if total is None:
                return None
            if len(found) >= total:
                return found
        raise Unreadable(f"{self.name}{path} shows {len(found)} items, but its total is {total}.")

    def _pages(
        self, path: str, names: Collection[str]
    ) -> Iterator[tuple[dict[str, dict[str, Any]], int]]:
        """Yields, for each page of a list, the items that earlier ones did not have, by what identifies
        them, and the total. Ends after the last page, or the first with nothing new. Yields nothing if
        there is no such list.
        """
        seen: set[str] = set()
        total, page = 1, 0
        link: str | None = None
        while len(seen) < total:
            page += 1
            answer = self.get(link) if link else self.get(path, {"page": page, "pageSize": PAGE})
            if answer is None:
                return
            items = self._page(path, answer, names)
            new = {key: one for key, one in items.items() if key not in seen}
            seen |= new.keys()
            # Following links never skips or repeats an item; counting pages may.
            link, total = answer.get("next"), answer["total"]
            yield new, total
            if not new:
                return

    def _page(
        self, path: str, answer: dict[str, Any], names: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """Returns the items of a page, by what identifies them. Raises NotJson if it is not a page."""
        items, total, link = answer.get("items"), answer.get("total"), answer.get("next")
        if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
            raise NotJson(f"{self.name}{path} does not answer with a list of objects.")
        if not isinstance(total, int):
            raise NotJson(f"{self.name}{path} has no total.")
        if link is not None and not (isinstance(link, str) and link.startswith("/")):
            raise NotJson(f"{self.name}{path} links to somewhere else.")
        found = {}
        for one in items:
            key = next((one[name] for name in names if one.get(name)), None)
            if not isinstance(key, str) or not storable(key):
                raise NotJson(f"{self.name}{path} shows an item without {' or '.join(names)}.")
            found[key] = one
        return found


class Look:
    """A view of the API for one pass. It is no snapshot, since pages are read one by one; ``at`` is when
    it began, by the clock here.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.at = times.now()
        # Only the ids: there may be many resources, and they may be large.
        self._ids = {kind: api.ids(kind) for kind in NATIVE}

    def count(self, kind: str) -> int:
        """Returns the number of resources of a kind."""
        return len(self._ids[kind])

    def ids(self, kind: str, *, anew: bool = False) -> set[str]:
        """Returns the ids of all resources of a kind, read at first or ``anew``: one may have slipped
        from page to page while the list was read.
        """
        return self._api.ids(kind) if anew else self._ids[kind]

    def batches(self, kind: str) -> Iterator[list[Raw]]:
        """Yields the resources of a kind with their reports; those that are being deleted come last."""
        rest = self._rest(kind)
        # Unlike those of concurrent.futures, these threads do not keep a process from ending.
        with ThreadPool(TOGETHER) as threads:
            while batch := list(islice(rest, BATCH)):
                raws = threads.imap(lambda item: self._whole(kind, item), batch)
                yield [raw for raw in raws if raw is not None]

    def _rest(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yields the resources of a kind in that order, for which it may read the list twice."""
        given: set[str] = set()
        marked = False
        for one in self._api.each(kind):
            if one.get("deleted_time"):
                marked = True
            else:
                given.add(one["id"])
                yield one
        if marked:
            # What was yielded unmarked and is marked by now comes as marked in the next pass.
            yield from (one for one in self._api.each(kind) if one["id"] not in given)

    def others(self) -> Iterator[Refusal]:
        """Yields nothing: these lists only have clusters and node pools."""
        return iter(())

    def _whole(self, kind: str, item: dict[str, Any]) -> Raw | None:
        children = 0
        reports: list[dict[str, Any]] = []
        refusals: tuple[Refusal, ...] = ()
        path = self._path(kind, item)
        if path:
            try:
                shown = self._api.items(f"{path}/statuses", "id", "adapter")
                if shown is None and self._api.get(path) is None:
                    # It was removed after the list was read.
                    return None
                reports, missing = shown or [], shown is None
                reason = "its reports are not found, although it is" if missing else ""
            except NotJson:
                reason = "its reports are not JSON"
            if reason:
                refusals = (Refusal("report", item["id"], "", reason),)
            if kind == "Cluster" and item.get("deleted_time"):
                children = len(self._api.items(f"{path}/nodepools", "id") or [])
        members = {name: value for name, value in item.items() if name not in ("spec", "status")}
        status = item.get("status")
        members["conditions"] = status.get("conditions") if isinstance(status, dict) else None
        texts = [
            (json.dumps(one), _text(one.get("data")), _text(one.get("metadata"))) for one in reports
        ]
        spec = _text(item.get("spec")) or "null"
        return Raw(kind, item["id"], json.dumps(members), spec, texts, children, refusals)

    @staticmethod
    def _path(kind: str, item: dict[str, Any]) -> str:
        """Returns the path of a resource; empty if its id or its owner's is not a valid one."""
        references = item.get("owner_references")
        owner = references.get("id") if isinstance(references, dict) else None
        ids = [item["id"]] if kind == "Cluster" else [owner, item["id"]]
        if not all(isinstance(id_, str) and LABEL_VALUE.fullmatch(id_) for id_ in ids):
            return ""
        above = [] if kind == "Cluster" else [NATIVE["Cluster"].segment, ids[0]]
        return "/".join([BASE, *above, NATIVE[kind].segment, ids[-1]])


def _list(kind: str) -> str:
    return f"{BASE}/{NATIVE[kind].segment}"


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _certificates() -> str | bool:
    """Returns the CA certificates that requests would use, if it did not ignore the environment."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
