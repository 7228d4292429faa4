"""Reads an original over its REST API, of any generation, or another instance of this service."""

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
# Requests at a time: reports are asked for one resource after the other.
TOGETHER = 8
TIMEOUT = 60
# Times that a list is read again which has shifted while it was read.
TRIES = 3
# Times that a request is sent again, and the most seconds that the service may ask to wait before each.
RETRIES, PATIENCE = 3, 10.0


class NotJson(Unreadable):
    """What it answers is no JSON, or not what the API answers."""


class Patience(Retry):
    """Waits as long as the service asks for, but not for ever."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """Seconds to wait, at most PATIENCE; None where it doesn't say."""
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, PATIENCE)


class Api:
    """The REST API of an original.

    What ``identity`` and ``certain`` are is said of :class:`hyperfleet.takeover.database.Database`.

    :param url: its address, which may end in the API's base path or not
    :param token: empty where none is needed
    """

    # Whatever answers at the address may be another service than the one before.
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
        # Else a .netrc could replace the token.
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
        """Asks for a cluster, to see that it answers. Raises StartError when it doesn't."""
        try:
            answer = self.get(f"{BASE}/clusters", {"page": 1, "pageSize": 1})
        except Unreadable as error:
            raise StartError(str(error)) from None
        if answer is None or not isinstance(answer.get("items"), list):
            raise StartError(f"{self.name} does not answer like the HyperFleet API.")
        return f"the service {self.name}"

    @contextmanager
    def look(self, _since: str | None, _again: Collection[str]) -> Iterator["Look"]:
        """All that it shows; its lists cannot be asked for what was changed."""
        yield Look(self)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """What is at a path; None where nothing is. Raises Unreadable."""
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
        """All items of a list, whatever size its pages have; None where there is no such list.

        Raises Unreadable for a list that does not come to the total that it tells.

        :param names: what tells items apart: the first of these members that one has
        """
        found = self._all(path, names, lambda one: one)
        return None if found is None else list(found.values())

    def ids(self, kind: str) -> set[str]:
        """The ids of all resources of a kind. Raises Unreadable where there is no such list."""
        found = self._all(_list(kind), ["id"], lambda _: None)
        if found is None:
            raise Unreadable(f"{self.name}{_list(kind)} answers 404.")
        return set(found)

    def each(self, kind: str) -> Iterator[dict[str, Any]]:
        """The resources of a kind, each once, as its page is read; no more than a page is held.

        Raises Unreadable for a list that does not come to the total that it tells, or is not there.
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
        """What is kept of each item of a list, by what tells them apart; None where there is none."""
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
        """What each page of a list shows that those before did not, by what tells items apart, and the
        total that it tells; to the last page, or the first with nothing new. None of a list that is not
        there.
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
            # A link neither skips nor repeats; a page by its number may.
            link, total = answer.get("next"), answer["total"]
            yield new, total
            if not new:
                return

    def _page(
        self, path: str, answer: dict[str, Any], names: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """The items of a page, by what tells them apart. Raises NotJson for what is no page."""
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
    """What is seen in one pass; not one moment, since a page comes after the other. ``at`` is when it
    was, by this clock.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.at = times.now()
        # Nothing else of them: there may be many, and they may be large.
        self._ids = {kind: api.ids(kind) for kind in NATIVE}

    def count(self, kind: str) -> int:
        """How many resources of a kind there are."""
        return len(self._ids[kind])

    def ids(self, kind: str, *, anew: bool = False) -> set[str]:
        """The ids of all resources of a kind that were seen, or ``anew`` are now: one may have slipped
        from page to page while the list was read.
        """
        return self._api.ids(kind) if anew else self._ids[kind]

    def batches(self, kind: str) -> Iterator[list[Raw]]:
        """The resources of a kind, with their reports; those that are being deleted come last."""
        rest = self._rest(kind)
        # Unlike those of concurrent.futures, these threads keep no process that is told to end.
        with ThreadPool(TOGETHER) as threads:
            while batch := list(islice(rest, BATCH)):
                raws = threads.imap(lambda item: self._whole(kind, item), batch)
                yield [raw for raw in raws if raw is not None]

    def _rest(self, kind: str) -> Iterator[dict[str, Any]]:
        """The resources of a kind in their order, for which the list may be read twice."""
        given: set[str] = set()
        marked = False
        for one in self._api.each(kind):
            if one.get("deleted_time"):
                marked = True
            else:
                given.add(one["id"])
                yield one
        if marked:
            # What is marked by now, and was given before, comes as that with the next pass.
            yield from (one for one in self._api.each(kind) if one["id"] not in given)

    def others(self) -> Iterator[Refusal]:
        """Nothing: these lists hold clusters and node pools alone."""
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
                    # It is gone since the list was read.
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
        """Where it is; empty for what has an id, or an owner's, that it cannot have."""
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
    """Where requests looks too, which is told to look at nothing else of the environment."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
