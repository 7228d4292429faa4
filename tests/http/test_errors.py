"""Errors of every layer have one form and the right status, which is never 500."""

import re
import string
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
import requests
from conftest import Api
from helpers_contract import (
    BASE,
    JSON,
    METHODS,
    NO_ID,
    OPERATIONS,
    PROBLEM,
    check,
    media_type,
    problem,
    raw,
)
from psycopg import sql as statement
from psycopg.conninfo import conninfo_to_dict, make_conninfo

LIMIT = 1024 * 1024


def test_unknown_paths_are_not_found(api: Api) -> None:
    for path in (
        "//api",
        "//api/hyperfleet/v2",
        "//clusters",
        "/cluster",
        "/clusters/x/y",
        f"/clusters/{NO_ID}/nodepools/{NO_ID}/x",
        f"/nodepools/{NO_ID}/x",
        "/CLUSTERS",
        "/%63lusters%00",
        "//favicon.ico",
        "/../../../etc/passwd",
        "/é",
    ):
        for method in ("GET", "POST", "DELETE"):
            body = problem(api.request(method, path), 404)
            assert body["detail"]


def test_a_wrong_method_gets_405_with_the_allowed_ones(api: Api) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    allowed: dict[str, set[str]] = {}
    for operation in OPERATIONS.values():
        allowed.setdefault(operation.path, set()).add(operation.method)
    values = {
        "cluster_id": cluster["id"],
        "nodepool_id": node_pool["id"],
        "error_id": "HYPERFLEET-NTF-001",
        "resource_id": cluster["id"],
        "generation": "1",
    }
    for path, defined in allowed.items():
        methods = defined | ({"HEAD"} if "GET" in defined else set())
        for method in {one.upper() for one in METHODS} - methods - {"HEAD"}:
            response = api.request(method, "/" + path.format_map(values), json={})
            assert problem(response, 405)["detail"]
            assert set(re.split(r",\s*", response.headers["Allow"])) == methods, f"{method} {path}"
    assert api.read(cluster) == cluster


def test_a_trailing_slash_is_ignored(api: Api) -> None:
    cluster = check(api.post("/clusters/", json={"name": "c1", "spec": {}}, allow_redirects=False), 201)
    node_pool = api.node_pool(cluster)
    for path in (
        "//api/hyperfleet",
        f"/{BASE}",
        "/clusters",
        f"/{cluster['href']}",
        f"/{node_pool['href']}",
        f"/{cluster['href']}/statuses",
        "/errors",
        "/compatibility",
    ):
        with_slash = api.get(path + "/", allow_redirects=False)
        assert check(with_slash) == check(api.get(path))
        check(api.head(path + "/", allow_redirects=False))
    check(api.get("/clusters/?size=0", allow_redirects=False))
    problem(api.get(f"/clusters/{NO_ID}/"), 404)
    problem(api.get("/nope/"), 404)
    problem(api.delete("/clusters/"), 405)


def test_head_has_the_status_and_content_type_of_get_and_no_body(api: Api) -> None:
    for path, status in (
        ("/clusters", 200),
        (f"/clusters/{NO_ID}", 404),
        ("/nope", 404),
        ("/clusters?page=0", 400),
    ):
        head, get = api.head(path), api.get(path)
        assert head.status_code == get.status_code == status
        assert head.content == b""
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        assert head.headers["X-Request-ID"]


def assert_errors_are_of_type(api: Api, accept: str | None, expected: str) -> None:
    """Asserts that with this Accept header, errors of every layer have this content type."""
    headers = {"Accept": accept}
    for response in (
        api.get("/nope", headers=headers),
        api.get(f"/clusters/{NO_ID}", headers=headers),
        api.get("/clusters?page=0", headers=headers),
        api.delete("/clusters", headers=headers),
        api.post("/clusters", json={}, headers=headers),
        api.post("/clusters", data="{", headers={**headers, "Content-Type": JSON}),
        api.post("/clusters", data="{}", headers={**headers, "Content-Type": "text/plain"}),
        api.post("/clusters", data=" " * (LIMIT + 1), headers={**headers, "Content-Type": JSON}),
    ):
        assert media_type(response) == expected, f"{accept}: {response.url}"
        assert response.json()["status"] == response.status_code
    # Success is always JSON.
    assert media_type(api.get("/clusters", headers=headers)) == JSON


def test_a_client_that_names_json_but_not_problem_json_gets_errors_as_json(api: Api) -> None:
    for accept in (
        JSON,
        "application/json;q=0.9",
        "application/json; charset=utf-8",
        "application/json, text/plain, */*",
        "text/html,application/json;q=0.5",
    ):
        assert_errors_are_of_type(api, accept, JSON)
    for accept in (
        None,
        "*/*",
        "text/html",
        "application/*",
        PROBLEM,
        f"{JSON}, {PROBLEM}",
        f"{PROBLEM};q=0.1, {JSON}",
        "garbage;;;,,,q=",
    ):
        assert_errors_are_of_type(api, accept, PROBLEM)


def test_media_types_in_accept_are_case_insensitive(api: Api) -> None:
    assert_errors_are_of_type(api, "Application/JSON", JSON)


def test_a_media_type_that_only_starts_like_json_is_not_json(api: Api) -> None:
    assert_errors_are_of_type(api, "application/jsonx", PROBLEM)


def test_every_response_has_its_own_request_id_which_errors_repeat(api: Api) -> None:
    answers = [
        api.get("/clusters"),
        api.get("/compatibility"),
        api.head("/clusters"),
        api.get("//openapi"),
    ]
    answers += [api.get("/nope"), api.delete("/clusters"), api.post("/clusters", json={})]
    ids = [answer.headers["X-Request-ID"] for answer in answers]
    assert len(set(ids)) == len(ids)
    for answer in answers[4:]:
        assert (
            answer.json()["trace_id"] == answer.json()["operation_id"] == answer.headers["X-Request-ID"]
        )


def test_a_request_id_of_up_to_128_letters_digits_and_some_signs_is_kept_and_any_other_replaced(
    api: Api,
) -> None:
    known = string.ascii_letters + string.digits + "._:/+=-"
    for given in ("abc-123", NO_ID, "A" * 64, "x", known, "A" * 128):
        assert problem(api.get("/nope", headers={"X-Request-ID": given}), 404)["trace_id"] == given
    signs = "".join(sorted({chr(code) for code in range(33, 127)} - {*known}))
    wrong = [
        "",
        "A" * 129,
        "x" * 5000,
        "a b",
        "a\tc",
        "é",
        '"><script>',
        *(f"a{sign}b" for sign in signs),
    ]
    made = set()
    for given in wrong:
        head = b"GET " + BASE.encode() + b"/nope HTTP/1.1\r\nX-Request-ID: " + given.encode()
        response = raw(api, head)
        own = problem(response, 404)["trace_id"]
        assert str(UUID(own)) == own == response.headers["X-Request-ID"]
        made.add(own)
    assert len(made) == len(wrong)


def test_an_error_names_the_path_and_the_time_of_the_request(api: Api) -> None:
    assert problem(api.get("/nope?x=1"), 404)["instance"].startswith(f"{BASE}/nope")
    assert problem(api.get("/clusters?page=0"), 400)["instance"].startswith(f"{BASE}/clusters")
    assert problem(api.get("/clusters/\u00e9"), 404)["instance"] == f"{BASE}/clusters/%C3%A9"
    first, second = (problem(api.get("/nope"), 404) for _ in range(2))
    assert first["timestamp"] < second["timestamp"]


GARBAGE = [
    "%00", "%01", "%ff", "%c3%28", "%ED%A0%80", "%", "%%", "%zz", "%2", "%u0041", "%252e", "%2e%2e",
    "..;", NO_ID.replace("-", ""),
    "'", '"', "`", "\\", "|", "<script>", "{id}", "[x]", "^", "~", "*", "$(id)", ";x=1", "a%20b", "a+b",
    "%F0%9F%9A%80", "%E2%80%AE", "-1", "0", "null", "undefined", "NaN", "x" * 4000, "%41" * 1000,
    NO_ID + "%00", NO_ID + "%20", "%20" + NO_ID, "{" + NO_ID + "}", "urn:uuid:" + NO_ID,
    "'%20OR%201=1--", "%27%3B%20DROP%20TABLE%20clusters%3B--",
]  # fmt: skip


def test_garbage_in_a_path_is_not_found(api: Api) -> None:
    cluster = api.cluster()
    for garbage in GARBAGE:
        for path in (
            f"/clusters/{garbage}",
            f"/clusters/{garbage}/nodepools",
            f"/clusters/{garbage}/statuses",
            f"/clusters/{cluster['id']}/nodepools/{garbage}",
            f"/clusters/{cluster['id']}/nodepools/{garbage}/statuses",
            f"/errors/{garbage}",
            f"/{garbage}",
        ):
            response = raw(api, f"GET {BASE}{path} HTTP/1.1")
            assert response.status_code == 404, f"{path}: {response.status_code}"
            problem(response, 404)


@pytest.mark.parametrize("line_break", ["%0a", "%0d%0a"])
def test_a_line_break_in_a_path_is_not_found(api: Api, line_break: str) -> None:
    for path in (f"/clusters/{line_break}", f"/clusters/{NO_ID}{line_break}", f"/clusters{line_break}x"):
        problem(raw(api, f"GET {BASE}{path} HTTP/1.1"), 404)


def test_an_empty_segment_in_a_path_is_not_found(api: Api) -> None:
    for path in (f"{BASE}//clusters", f"{BASE}/clusters//{NO_ID}", f"{BASE}/clusters//{NO_ID}/statuses"):
        problem(raw(api, f"GET {path} HTTP/1.1"), 404)


def test_an_empty_segment_at_the_start_of_a_path_is_not_found(api: Api) -> None:
    problem(raw(api, f"GET /{BASE}/clusters HTTP/1.1"), 404)


def test_garbage_in_a_query_is_ignored_or_refused(api: Api) -> None:
    api.cluster()
    for garbage in GARBAGE:
        for name in ("page", "pageSize", "size"):
            if garbage in ("0", "-1"):
                continue  # these are numbers; they have their own tests
            problem(raw(api, f"GET {BASE}/clusters?{name}={garbage} HTTP/1.1"), 400, name)
        for query in (
            garbage,
            f"{garbage}={garbage}",
            f"unknown={garbage}",
            f"&&{garbage}&=&",
            f"page[]={garbage}",
        ):
            response = raw(api, f"GET {BASE}/clusters?{query} HTTP/1.1")
            assert response.status_code in (200, 400), query
        response = raw(api, f"GET {BASE}/clusters?search={garbage} HTTP/1.1")
        assert response.status_code == 400, garbage
        problem(response, 400, "search")


def test_repeated_parameters_get_a_response_of_the_contract(api: Api) -> None:
    for query in (
        "page=1&page=2",
        "page=2&page=1",
        "pageSize=1&pageSize=2",
        "size=1&size=1",
        "search=&search=",
    ):
        response = api.get(f"/clusters?{query}")
        if response.status_code == 200:
            check(response)
        else:
            problem(response, 400)
    problem(api.get("/clusters?page=0&page=x"), 400, "page")


def test_garbage_in_headers_causes_no_server_error(api: Api) -> None:
    for header in (
        b"Accept: \xff",
        b"Accept: " + b"a/b," * 2000,
        b"Accept-Language: \x80\x81",
        b"Accept-Encoding: gzip;q=x",
        b"If-None-Match: \xff",
        b"If-Modified-Since: yesterday",
        b"Range: bytes=0-1",
        b"Expect: 100-continue",
        b"Cookie: =;=;\xff",
        b"Authorization: Bearer \xff",
        b"Forwarded: for=\xff",
        b"X-Forwarded-For: x",
        b"X-Forwarded-Proto: javascript",
        b"Content-Type: text/plain",
        b"Content-Type: application/json; charset=nonsense",
    ):
        head = f"GET {BASE}/clusters HTTP/1.1\r\n".encode() + header
        assert raw(api, head).status_code == 200, header
    for kind in (b"\xff", b";", b"a" * 5000, b"application/json\x01"):
        head = f"POST {BASE}/clusters HTTP/1.1\r\nContent-Length: 2\r\nContent-Type: ".encode() + kind
        assert raw(api, head, b"{}").status_code in (400, 415), kind


def test_a_malformed_content_type_without_a_body_is_ignored(api: Api) -> None:
    for kind in (b"\xff", b"json", b";", b"a/b/c"):
        head = f"GET {BASE}/clusters HTTP/1.1\r\nContent-Type: ".encode() + kind
        assert raw(api, head).status_code == 200, kind


@pytest.fixture
def outage(database: str) -> Iterator[Callable[[bool], None]]:
    """Takes this test's database away (True) and gives it back (False)."""
    elsewhere = make_conninfo(database, dbname="postgres")
    name = str(conninfo_to_dict(database)["dbname"])
    with psycopg.connect(elsewhere, autocommit=True) as connection:

        def gone(away: bool) -> None:
            allow = statement.SQL("false" if away else "true")
            connection.execute(
                statement.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format(
                    statement.Identifier(name), allow
                )
            )
            if away:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
                )

        yield gone
        gone(False)


@pytest.mark.slow
def test_requests_get_503_until_a_lost_database_is_back(
    api: Api, outage: Callable[[bool], None]
) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    report: dict[str, Any] = {
        "adapter": "dns",
        "observed_generation": 1,
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    outage(True)

    def request(method: str, path: str, body: Any) -> requests.Response:
        return Api(api.url).request(method, path, json=body)

    began = time.monotonic()
    with ThreadPoolExecutor() as threads:
        pending = [
            threads.submit(request, *call)
            for call in (
                ("GET", "/clusters", None),
                ("GET", f"/{cluster['href']}", None),
                ("GET", f"/{node_pool['href']}/statuses", None),
                ("GET", "/nodepools?size=0", None),
                ("POST", "/clusters", {"name": "c2", "spec": {}}),
                ("POST", f"/{cluster['href']}/nodepools", {"name": "np2", "spec": {}}),
                ("PUT", f"/{cluster['href']}/statuses", report),
            )
        ]
        # What needs no database still works, and invalid requests still get 400.
        check(api.get("/compatibility"))
        check(api.get("/errors"))
        problem(api.post("/clusters", json={}), 400, "name", "spec")
        problem(api.get("/clusters?page=0"), 400, "page")
        for response in (one.result() for one in pending):
            assert problem(response, 503)["code"].startswith("HYPERFLEET-SVC-")
            assert int(response.headers["Retry-After"]) >= 1
    assert time.monotonic() - began < 25

    outage(False)
    deadline = time.monotonic() + 20
    while (response := api.get("/clusters")).status_code != 200:
        problem(response, 503)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # None of the refused requests was carried out.
    assert check(response)["items"] == [cluster]
    assert check(api.get("/nodepools"))["items"] == [node_pool]
    assert api.cluster("c2")["name"] == "c2"


def test_idle_connections_that_broke_are_soon_replaced(api: Api, outage: Callable[[bool], None]) -> None:
    cluster = api.cluster()
    outage(True)
    outage(False)
    answers = [api.get("/clusters") for _ in range(10)]
    for answer in answers:
        if answer.status_code != 200:
            problem(answer, 503)
    assert check(answers[-1])["items"] == [cluster]
    assert api.cluster("c2")["name"] == "c2"
