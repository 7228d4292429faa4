"""Reads an original over its REST API, of any generation, or another instance of this service."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, NoReturn
from urllib.parse import urlsplit

import psycopg
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from hyperfleet import times
from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.kinds import BASE, RESOURCES
from hyperfleet.takeover.rows import Raw, Refusal
from hyperfleet.takeover.source import BATCH, Pass

PAGE = 100
# Requests at a time: reports are asked for one resource after the other.
TOGETHER = 8
TIMEOUT = 60
# Times that a list is read again which has shifted while it was read.
TRIES = 3


class Unreadable(Exception):
    """Why a service cannot be read, for now or at all."""


class NotJson(Unreadable):
    """What it answers is no JSON."""


class Api:
    """The REST API of an original.

    :param url: its address, which may end in the API's base path or not
    :param token: empty where none is needed
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("--from-api must be a URL such as https://HOST:PORT.")
        if parts.username or parts.password:
            raise ConfigurationError("--from-api must not hold a user or a password; see --token.")
        self.name = url.rstrip("/").removesuffix(BASE)
        self._session = requests.Session()
        # Else a .netrc could replace the token.
        self._session.trust_env = False
        self._session.verify = _certificates()
        retry = Retry(
            3, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), raise_on_status=False
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
            raise StartError(f"{self.name} does not answer as the API of HyperFleet does.")
        return f"the service {self.name}"

    @contextmanager
    def look(self, _since: str | None, _again: Collection[str]) -> Iterator[Pass]:
        """All that it shows; its lists cannot be asked for what was changed."""
        yield _Look(self)

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
                raise Unreadable(f"{self.name}{path} cannot be asked for.") from None
            raise NotJson(f"{self.name}{path} does not answer JSON.") from None
        except requests.RequestException as error:
            reason = type(error).__name__
            raise Unreadable(f"{self.name}{path} cannot be read: {reason}.") from None
        if not isinstance(answer, dict):
            raise NotJson(f"{self.name}{path} answers no JSON object.")
        return answer

    def items(self, path: str) -> list[dict[str, Any]] | None:
        """All items of a list, whatever size its pages have; None where there is no such list."""
        found: dict[str, dict[str, Any]] = {}
        for _ in range(TRIES):
            total, page, seen = 1, 1, 0
            link: str | None = None
            while seen < total:
                answer = self.get(link) if link else self.get(path, {"page": page, "pageSize": PAGE})
                if answer is None:
                    return None
                items = answer.get("items")
                if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
                    raise NotJson(f"{self.name}{path} answers no list of objects.")
                found |= {str(one.get("id") or one.get("adapter")): one for one in items}
                # A link neither skips nor repeats; a page by its number may.
                link = answer.get("next")
                if link is not None and not str(link).startswith("/"):
                    raise NotJson(f"{self.name}{path} links to somewhere else.")
                total, page, seen = int(answer.get("total") or 0), page + 1, seen + len(items)
                if not items:
                    break
            if len(found) >= total:
                break
        return list(found.values())


class _Look:
    """What is seen in one pass; not one moment, since a page comes after the other."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.at = times.now()
        self._items = {kind: api.items(f"{BASE}/{of.segment}") or [] for kind, of in RESOURCES.items()}

    def count(self, kind: str) -> int:
        """How many resources of a kind there are."""
        return len(self._items[kind])

    def ids(self, kind: str, *, anew: bool = False) -> set[str]:
        """The ids of all resources of a kind that were seen, or are now: one may have slipped from page
        to page while the list was read.
        """
        items = self._api.items(f"{BASE}/{RESOURCES[kind].segment}") if anew else self._items[kind]
        return {one["id"] for one in items or () if _has_id(one)}

    def batches(self, kind: str) -> Iterator[list[Raw]]:
        """The resources of a kind, with their reports."""
        rest = iter(sorted(self._items[kind], key=lambda one: bool(one.get("deleted_time"))))
        with ThreadPoolExecutor(TOGETHER) as threads:
            while batch := list(islice(rest, BATCH)):
                raws = threads.map(lambda item: self._whole(kind, item), batch)
                yield [raw for raw in raws if raw is not None]

    def others(self) -> Iterator[Refusal]:
        """Nothing: these lists hold clusters and node pools alone."""
        return iter(())

    def _whole(self, kind: str, item: dict[str, Any]) -> Raw | None:
        path, children = self._path(kind, item), 0
        refusals: tuple[Refusal, ...] = ()
        try:
            reports = self._api.items(f"{path}/statuses")
        except NotJson:
            reports, refusals = [], (Refusal("report", item["id"], "", "its reports are no JSON"),)
        if reports is None:
            # It is gone since the list was read.
            return None
        if kind == "Cluster" and item.get("deleted_time"):
            children = len(self._api.items(f"{path}/nodepools") or [])
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
        own = f"{RESOURCES[kind].segment}/{item['id']}"
        if kind == "Cluster":
            return f"{BASE}/{own}"
        references = item.get("owner_references")
        owner = references.get("id") if isinstance(references, dict) else None
        return f"{BASE}/{RESOURCES['Cluster'].segment}/{owner}/{own}"


def _has_id(item: dict[str, Any]) -> bool:
    return isinstance(item.get("id"), str)


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _certificates() -> str | bool:
    """Where requests looks too, which is told to look at nothing else of the environment."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
