"""A real PostgreSQL for every test: embedded, or the server that HYPERFLEET_TEST_DATABASE_URL names.

Each test has its own database, copied from a migrated template.
"""

import asyncio
import copy
import functools
import gc
import http.client
import itertools
import json
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import declared_kinds
import hypothesis
import laid
import psycopg
import pytest
import requests
from connexion.spec import Specification
from process import CLEAN, server_folder
from prometheus_client import CollectorRegistry
from psycopg import sql as composed
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor
from remembered import remember

from hyperfleet.app import create_app
from hyperfleet.database import embedded, migration
from hyperfleet.database.pool import Pool, new_pool
from hyperfleet.database.reads import Reads
from hyperfleet.http.certificate import Certificate
from hyperfleet.http.routing import Shipped
from hyperfleet.http.server import App, Ending, Servers, address, listen
from hyperfleet.settings.catalogue import Settings

# A developer's settings for libpq must not decide whether a test passes.
for name in [name for name in os.environ if name.startswith("PG") and name not in CLEAN]:
    del os.environ[name]

# A CI run must not depend on chance; a developer's run explores more each time.
hypothesis.settings.register_profile("repeatable", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("repeatable")
# How many times as many requests the fuzzing and the models send; beyond 1, other ones each time.
MORE = int(os.environ.get("HYPERFLEET_TEST_MORE", "1"))

# Client and service are threads of one process: a thread that has its response should not wait five
# milliseconds for the other one to yield.
sys.setswitchinterval(0.0005)


def checked(document: dict[str, Any]) -> Shipped:
    """Returns the contract for Connexion, after the validation that a start omits."""
    Specification._validate_spec.__func__(Shipped, copy.deepcopy(document))
    return Shipped(document)


remember(checked)


# These run first, so that at the end no process waits for a long test that another has just begun.
LONGEST = {
    *("test_changes_order", "test_changes_survival", "test_kinds_alike", "test_lifecycle_model"),
    *("test_search_differential", "test_search_plans", "test_survival", "test_tenant_plans"),
    "test_wheel",
}


def pytest_configure() -> None:
    laid.begin()


def pytest_unconfigure() -> None:
    laid.kept.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish() -> None:
    # What all tests share is not garbage, and most of what a collection would scan.
    gc.freeze()


# The number of tests between garbage collections.
COLLECT_EVERY = 200
ended = itertools.count(1)


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """Collects garbage between tests only.

    In production the loop, its greenlets and the collector share one thread; here services have their
    own, and collecting garbage alongside them has crashed the process.
    """
    gc.disable()
    yield
    if next(ended) % COLLECT_EVERY == 0:
        gc.collect()
        # What is left will stay, and would be scanned each time.
        gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[NoopExecutor]:
    """Yields the server, with the migrated template that each test's database is copied from."""
    given = os.environ.get("HYPERFLEET_TEST_DATABASE_URL")
    if given:
        server = executor(given)
        janitor = DatabaseJanitor(
            user=server.user,
            host=server.host,
            port=server.port,
            dbname=server.template_dbname,
            password=server.password,
            as_template=True,
        )
        with janitor:
            migration.apply(url(server, server.template_dbname))
            yield server
    else:
        # Not in pytest's folders, which each run closes to other users; if the tests run as root,
        # PostgreSQL runs as another user.
        with server_folder() as files, embedded.running(laid.lay(files)) as conninfo:
            server = executor(conninfo)
            with psycopg.connect(conninfo, autocommit=True) as conn:
                # Nothing here has to survive a crash.
                for name in ("fsync", "synchronous_commit", "full_page_writes"):
                    conn.execute(f"ALTER SYSTEM SET {name} = off")
                conn.execute("SELECT pg_reload_conf()")
                conn.execute(f"CREATE DATABASE {server.template_dbname} TEMPLATE postgres")
            yield server


def executor(conninfo: str) -> NoopExecutor:
    """Returns how to reach a server, and the names of this run's databases."""
    parts = conninfo_to_dict(conninfo)
    return NoopExecutor(
        host=str(parts.get("host") or "127.0.0.1"),
        port=parts.get("port") or 5432,
        user=str(parts.get("user") or "postgres"),
        password=str(parts.get("password") or ""),
        dbname=f"hyperfleet_test_{os.getpid()}",
        options="",
    )


def url(server: NoopExecutor, dbname: str) -> str:
    return make_conninfo(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname=dbname,
    )


# In memory, copying files is faster than logging pages; on a disk, it must wait for checkpoints.
COPIED = "" if os.environ.get("HYPERFLEET_TEST_DATABASE_URL") else "STRATEGY file_copy"
numbers = itertools.count(1)


@pytest.fixture
def database(postgres: NoopExecutor) -> Iterator[str]:
    """Yields the connection string of this test's own migrated, empty database."""
    # Names differ, so that a database that could not be dropped affects only its own test.
    with migrated(postgres, str(next(numbers))) as conninfo:
        yield conninfo


@contextmanager
def migrated(postgres: NoopExecutor, suffix: str) -> Iterator[str]:
    """Yields the connection string of a migrated, empty database, dropped after the block."""
    with made(postgres, suffix, postgres.template_dbname) as conninfo:
        yield conninfo


@contextmanager
def made(postgres: NoopExecutor, suffix: str, template: str = "template1") -> Iterator[str]:
    """Yields the connection string of a copy of the template, dropped after the block."""
    name = f"{postgres.dbname}_{suffix}"
    names = {"name": composed.Identifier(name), "template": composed.Identifier(template)}
    create = composed.SQL("CREATE DATABASE {name} TEMPLATE {template} " + COPIED).format(**names)
    maintenance(postgres).execute(create)
    try:
        yield url(postgres, name)
    finally:
        maintenance(postgres).execute(
            composed.SQL("DROP DATABASE IF EXISTS {name} WITH (FORCE)").format(**names)
        )


@functools.cache
def maintenance(postgres: NoopExecutor) -> psycopg.Connection:
    """The connection to create and drop databases on: a new one takes as long as a copy."""
    return psycopg.connect(url(postgres, "postgres"), autocommit=True)


@pytest.fixture
def sql(database: str) -> Iterator[psycopg.Connection]:
    """A connection to this test's database, to look behind the API."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


# The number of clusters in the database of `large`.
CLUSTERS = 20_000


@pytest.fixture(scope="session")
def loaded(postgres: NoopExecutor, root: Path) -> Iterator[str]:
    """Yields the name of a database with many clusters and half as many node pools, to be copied."""
    load = runpy.run_path(str(root / "benchmarks" / "search.py"))["load"]
    with migrated(postgres, "loaded") as conninfo:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            load(connection, 1, CLUSTERS)
        yield conninfo_to_dict(conninfo)["dbname"]


@pytest.fixture
def large(postgres: NoopExecutor, loaded: str) -> Iterator[psycopg.Connection]:
    """A connection to this test's own database with many clusters."""
    with (
        made(postgres, str(next(numbers)), loaded) as conninfo,
        psycopg.connect(conninfo, autocommit=True) as connection,
    ):
        yield connection


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent


class Api(requests.Session):
    """An HTTP client of a running service; paths are relative to the base path of the API."""

    # Seconds to wait for a response unless a test says otherwise.
    timeout: float = 30

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.base = f"{url}/api/hyperfleet/v1"
        self.trust_env = False

    def request(self, method, url, *args, **kwargs):  # type: ignore[no-untyped-def]
        if url.startswith("//"):
            url = self.url + url[1:]
        elif url.startswith("/"):
            url = self.base + url
        kwargs.setdefault("timeout", self.timeout)
        return super().request(method, url, *args, **kwargs)

    def cluster(self, name: str = "c1", **members: Any) -> dict[str, Any]:
        response = self.post("/clusters", json={"name": name, "spec": {}, **members})
        assert response.status_code == 201, response.text
        return response.json()

    def node_pool(self, cluster: dict[str, Any], name: str = "np1", **members: Any) -> dict[str, Any]:
        path = f"/clusters/{cluster['id']}/nodepools"
        response = self.post(path, json={"name": name, "spec": {}, **members})
        assert response.status_code == 201, response.text
        return response.json()

    def report(
        self, resource: dict[str, Any], adapter: str = "dns", **members: Any
    ) -> requests.Response:
        body = {
            "adapter": adapter,
            "observed_generation": 1,
            "conditions": [{"type": "Available", "status": "True"}],
            **members,
        }
        return self.put(self.url + resource["href"] + "/statuses", json=body)

    def answer(self, *headers: tuple[str, str]) -> tuple[int, Any]:
        """Lists clusters with these headers, and returns the status and body.

        Several headers may have the same name, which requests does not support.
        """
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        connection.putrequest("GET", urlsplit(self.base).path + "/clusters")
        for header, value in headers:
            connection.putheader(header, value)
        connection.endheaders()
        response = connection.getresponse()
        document = json.loads(response.read())
        connection.close()
        return response.status, document

    def read(self, resource: dict[str, Any]) -> dict[str, Any]:
        response = self.get(self.url + resource["href"])
        assert response.status_code == 200, response.text
        return response.json()


class Service:
    """The service's API on a real socket, in a thread of this process, using one database."""

    def __init__(self, conninfo: str, pool: Any = None, **settings: Any) -> None:
        given = {"no_auth": True, "validate_responses": "all", **settings}
        if declared_kinds.ALIKE:
            adapters = {
                "Channel": [*settings.get("required_adapters_cluster", ())],
                "Version": [*settings.get("required_adapters_nodepool", ())],
            }
            given = {"entities": declared_kinds.of(adapters), **given}
        self.settings = Settings(**given)
        self.pool = pool or new_pool(
            conninfo, 8, self.settings.statement_timeout, history=self.settings.history
        )
        self.listener = listen("127.0.0.1", 0)
        try:
            self.app = create_app(self.settings, Reads(self.pool), CollectorRegistry())
        except BaseException:
            # A test may expect a refusal.
            self.listener.close()
            raise
        chosen = self.settings
        tls = Certificate(chosen.https_cert_file, chosen.https_key_file) if chosen.enable_https else None
        self.servers = Servers(
            [App(self.app, self.listener, tls, self.app.refused, self.app.farewell)],
            Ending(5),
            self.pool,
            settings=chosen,
        )
        self.thread = threading.Thread(target=self.servers.run, daemon=True)
        self.thread.start()
        self.url = address(self.listener, secure=chosen.enable_https)

    def stop(self, *, wait: bool = True) -> None:
        self.servers.stop()
        if wait:
            self.thread.join(10)
            self.listener.close()


@pytest.fixture
def service(database: str) -> Iterator[Callable[..., Api]]:
    """Starts services on this test's database, with the test's settings."""
    running: list[Service] = []

    def start(conninfo: str = database, **settings: Any) -> Api:
        running.append(Service(conninfo, **settings))
        return Api(running[-1].url)

    yield start
    for one in running:
        # What remains of it needs no database.
        one.stop(wait=False)


class Switch:
    """A pool that each test replaces with one for its own database."""

    pool: Pool
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.entered = threading.Event()

    async def __aenter__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.entered.set()

    async def __aexit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    @contextmanager
    def over(self, pool: Pool) -> Iterator[None]:
        self.pool = pool
        # The service has an address before it serves.
        assert self.entered.wait(10)
        asyncio.run_coroutine_threadsafe(pool.__aenter__(), self.loop).result(10)
        yield
        asyncio.run_coroutine_threadsafe(pool.close(), self.loop).result(10)


@pytest.fixture(scope="session")
def default_service() -> Iterator[Service]:
    """The service with the default settings, which most tests share to save time."""
    running = Service("", Switch())
    yield running
    running.stop()


@pytest.fixture
def api(default_service: Service, database: str) -> Iterator[Api]:
    """A client of a service with the default settings and no authentication, on this test's database."""
    with default_service.pool.over(new_pool(database, 8, default_service.settings.statement_timeout)):
        yield Api(default_service.url)


@pytest.fixture(scope="session")
def waiting_service() -> Iterator[Service]:
    """A service with required adapters, which many tests share, too."""
    running = Service(
        "",
        Switch(),
        required_adapters_cluster=("dns",),
        required_adapters_nodepool=("np",),
    )
    yield running
    running.stop()


@pytest.fixture
def waiting(waiting_service: Service, database: str) -> Iterator[Api]:
    """A service where each deletion waits: for dns on clusters, for np on node pools."""
    with waiting_service.pool.over(new_pool(database, 8, waiting_service.settings.statement_timeout)):
        yield Api(waiting_service.url)
