"""Errors of every layer have one form and the right status, which is never 500."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

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


def create(api: Api, body: str | bytes, **headers: str) -> requests.Response:
    """Posts a cluster with exactly this body."""
    data = body.encode() if isinstance(body, str) else body
    return api.post("/clusters", data=data, headers={"Content-Type": JSON, **headers})


def total(api: Api) -> int:
    return int(check(api.get("/clusters?size=0"))["total"])


def test_broken_json_is_refused(api: Api) -> None:
    good = '{"name": "c1", "spec": {}}'
    for body in (
        "",
        " ",
        "{",
        "}",
        good[:-1],
        good + "x",
        good + good,
        good.replace('"', "'"),
        '{"name": "c1", "spec": {},}',
        '{"name": "c1" "spec": {}}',
        '{"name": "c1", "spec": {"a": "\t"}}',
        '{"name": "c1", "spec": {"a": "\\x"}}',
        '{"name": "c1", "spec": {"a": "\\u12"}}',
        '{"name": "c1", "spec": {"a": 01}}',
        '{"name": "c1", "spec": {"a": tru}}',
        '{"name": "c1", "spec": {"a": NaN}}',
        '{"name": "c1", "spec": {"a": Infinity}}',
        '{"name": "c1", "spec": {"a": [-Infinity]}}',
        '{"name": "c1", "spec": {"a": 1e999}}',
        '{"name": "c1", "spec": {"a": -1e999}}',
        '{"name": "c1", "spec": {} /* no */}',
        "name=c1",
        "<name>c1</name>",
    ):
        assert problem(create(api, body), 400)["code"].startswith("HYPERFLEET-VAL-"), body
    assert total(api) == 0


def test_a_body_that_is_not_utf8_is_refused(api: Api) -> None:
    good = '{"name": "c1", "spec": {"a": "é"}}'
    for body in (
        good.encode("latin-1"),
        good.encode("utf-16"),
        good.encode("utf-32"),
        b'{"name": "c1", "spec": {"a": "\xff"}}',
        b'{"name": "c1", "spec": {"a": "\xed\xa0\x80"}}',
        b'{"name": "c1", "spec": {"a": "\xc0\x80"}}',
        b"\x00",
        bytes(range(256)),
    ):
        problem(create(api, body), 400)
    assert total(api) == 0


def test_a_body_that_is_not_an_object_is_refused(api: Api) -> None:
    cluster = api.cluster()
    for body in ("null", "true", "1", '"x"', "[]", "[{}]"):
        problem(create(api, body), 400)
        for path in ("nodepools", "statuses"):
            headers = {"Content-Type": JSON}
            problem(api.post(f"/clusters/{cluster['id']}/{path}", data=body, headers=headers), 400)


def test_deep_nesting_is_refused(api: Api) -> None:
    for spec in (
        '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"a": ' * 10_000 + "1" + "}" * 10_000,
        '{"a": ' + '[{"a": ' * 5_000 + "1" + "}]" * 5_000 + "}",
        "[" * 10_000,
    ):
        problem(create(api, f'{{"name": "c1", "spec": {spec}}}'), 400)
        # Wherever the nesting occurs.
        problem(create(api, spec), 400)
        problem(create(api, f'{{"name": "c1", "spec": {{}}, "unknown": {spec}}}'), 400)
    assert total(api) == 0


def test_thousands_of_wrong_names_are_refused_quickly(api: Api) -> None:
    start = time.process_time()
    labels = {f"-{number}": "" for number in range(9000)}
    body = problem(create(api, json.dumps({"name": "c1", "spec": {}, "labels": labels})), 400)
    assert [error["field"] for error in body["errors"]] == ["labels"]
    body = problem(create(api, json.dumps({"name": "c1", "spec": {}, **dict.fromkeys(labels, 1)})), 400)
    assert body["errors"][0]["field"].startswith("-")
    # Each error would otherwise repeat all of the labels.
    labels = {f"-{number}{'x' * 3000}": "" for number in range(300)}
    body = problem(create(api, json.dumps({"name": "c1", "spec": {}, "labels": labels})), 400)
    assert [error["field"] for error in body["errors"]] == ["labels"]
    # Also if there are only empty objects.
    nested: dict[str, Any] = {}
    for _ in range(8):
        nested = {"": nested}
    emptied = {f"-{number}": nested for number in range(900)}
    body = problem(create(api, json.dumps({"name": "c1", "spec": {}, "labels": emptied})), 400)
    assert [error["field"] for error in body["errors"]] == ["labels"]
    body = problem(api.get("/clusters?" + "&".join(f"size{number}=1" for number in range(3000))), 400)
    assert body["errors"][0]["message"].endswith("did you mean size?")
    assert len(body["errors"]) == 50
    assert time.process_time() - start < 5


def test_at_most_a_thousand_strings_that_cannot_be_stored_are_listed(api: Api) -> None:
    spec = json.dumps({"a": ["\0"] * 5000})
    body = problem(create(api, f'{{"name": "c1", "spec": {spec}}}'), 400)
    assert [error["field"] for error in body["errors"]] == [f"spec.a[{at}]" for at in range(1000)]


def test_an_integer_too_large_for_a_double_is_kept_and_listed(api: Api) -> None:
    large = 10**400
    made = create(api, f'{{"name": "c1", "spec": {{"n": {large}, "m": [-{large}]}}}}')
    assert made.status_code == 201, made.text
    [found] = check(api.get("/clusters"))["items"]
    assert found["spec"] == {"n": large, "m": [-large]}


def test_an_integer_of_5000_digits_gets_the_standard_error(api: Api) -> None:
    problem(create(api, f'{{"name": "c1", "spec": {{"a": {"9" * 5_000}}}}}'), 400)


def test_nul_and_lone_surrogates_are_refused_anywhere_in_a_body(api: Api) -> None:
    for character in ("\\u0000", "\\ud800", "\\udfff", "x\\ud83dx", "\\ude80\\ud83d"):
        for members, field in (
            ('"name": "a%s", "spec": {}', "name"),
            ('"name": "a", "spec": {"a": "%s"}', "spec.a"),
            ('"name": "a", "spec": {"a": [1, {"b": "x%s"}]}', "spec.a[1].b"),
            ('"name": "a", "spec": {"a%s": 1}', None),
            ('"name": "a", "spec": {"a": {"%s": {}}}', None),
            ('"name": "a", "spec": {}, "labels": {"k": "%s"}', "labels.k"),
            ('"name": "a", "spec": {}, "labels": {"%s": "v"}', None),
        ):
            body = problem(create(api, "{" + members % character + "}"), 400)
            named = {error["field"] for error in body["errors"]}
            if field:
                assert named == {field}
            else:
                assert all(re.match(r"(spec|labels)\b", one) for one in named), named
    # A complete pair is an ordinary character.
    whole = check(create(api, '{"name": "a", "spec": {"a": "\\ud83d\\ude80"}}'), 201)
    assert whole["spec"] == {"a": "🚀"}
    assert total(api) == 1


def test_a_body_of_another_content_type_is_refused(api: Api) -> None:
    cluster = api.cluster()
    body = json.dumps({"name": "c2", "spec": {}})
    for kind in (
        "text/json",
        "application/xml",
        "multipart/form-data; boundary=x",
        "application/merge-patch+json",
        "application/json-patch+json",
        "application/jsonx",
        "application/json, text/plain",
        "json",
        "/",
    ):
        problem(api.post("/clusters", data=body, headers={"Content-Type": kind}), 415)
        problem(
            api.post(f"/clusters/{cluster['id']}/nodepools", data=body, headers={"Content-Type": kind}),
            415,
        )
        for method in ("POST", "PUT"):
            path = f"/clusters/{cluster['id']}/statuses"
            problem(api.request(method, path, data=body, headers={"Content-Type": kind}), 415)
    assert total(api) == 1
    # A body is ignored where none is expected.
    check(api.request("GET", "/clusters", data="<x>", headers={"Content-Type": "text/xml"}))


def test_a_body_may_have_one_mebibyte_and_not_a_byte_more(api: Api) -> None:
    empty = '{"name": "c1", "spec": {"a": ""}}'
    largest = empty.replace('""', '"' + "x" * (LIMIT - len(empty)) + '"')
    assert len(largest) == LIMIT
    problem(create(api, largest + " "), 413)
    problem(create(api, " " * (5 * LIMIT)), 413)
    assert check(create(api, largest), 201)["spec"]["a"].count("x") == LIMIT - len(empty)
    assert total(api) == 1


def chunked(api: Api, path: str, chunks: Iterator[bytes]) -> tuple[int, dict[str, str], bytes]:
    """Posts a body of unknown length in chunks; returns status, headers and body of the response."""
    parts = urlsplit(api.url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    try:
        # Once it has responded, the service need not read the rest.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(
                "POST", path, body=chunks, headers={"Content-Type": JSON}, encode_chunked=True
            )
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_the_size_of_a_chunked_body_is_limited(api: Api) -> None:
    status, headers, body = chunked(api, f"{BASE}/clusters", (b" " * 65536 for _ in range(17)))
    assert status == 413, body
    assert headers["content-type"] == PROBLEM
    assert json.loads(body)["code"].startswith("HYPERFLEET-LMT-")
    assert json.loads(body)["trace_id"] == headers["x-request-id"]
    assert total(api) == 0


def test_a_chunked_body_is_read(api: Api) -> None:
    good = b'{"name": "c1", "spec": {"a": "' + b"x" * 1000 + b'"}}'
    status, _, body = chunked(api, f"{BASE}/clusters", iter([good[:10], good[10:500], good[500:]]))
    assert status == 201, body
    assert json.loads(body)["spec"] == {"a": "x" * 1000}


def test_the_limit_on_the_body_size_is_configurable(service: Callable[..., Api]) -> None:
    api = service(max_body_size=2048)
    body = problem(create(api, '{"name": "c1", "spec": {}}' + " " * 2048), 413)
    assert "at most 2048 bytes" in body["detail"]
    check(create(api, '{"name": "c1", "spec": {}}' + " " * 1024), 201)


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


def test_the_clients_request_id_is_kept_but_never_longer_than_256_characters(api: Api) -> None:
    for given in ("abc-123", NO_ID, "A" * 64):
        assert problem(api.get("/nope", headers={"X-Request-ID": given}), 404)["trace_id"] == given
    for given in ("x" * 5000, "a b\tc", "é", '"><script>', "{}\\"):
        head = b"GET " + BASE.encode() + b"/nope HTTP/1.1\r\nX-Request-ID: " + given.encode()
        response = raw(api, head)
        assert problem(response, 404)["trace_id"]
        assert len(response.headers["X-Request-ID"]) <= 256


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


def spoken(api: Api, *said: bytes) -> bytes:
    """Sends these on one connection; returns everything received."""
    parts = urlsplit(api.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        for one in said:
            connection.sendall(one)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_garbage_instead_of_http_gets_one_400_and_corrupts_no_other_response(api: Api) -> None:
    answers = spoken(api, b"\x00garbage" * 5000)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert answers.startswith(b"HTTP/1.1 400 ")
    for number in range(20):
        api.cluster(f"c{number}", labels={"l": "x" * 60})
    whole = f"GET {BASE}/clusters HTTP/1.1\r\nHost: test\r\n\r\n".encode()
    answers = spoken(api, whole + b"\x00garbage\r\n\r\n")
    head, _, body = answers.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert len(json.loads(body)["items"]) == 20


def test_a_body_with_broken_chunks_is_refused_at_once_and_changes_nothing(api: Api) -> None:
    cluster = api.cluster()
    headers = f"Host: test\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
    whole = b'{"name": "c2", "spec": {}}'
    for method, path in (("POST", "/clusters"), ("PATCH", f"/clusters/{cluster['id']}")):
        head = f"{method} {BASE}{path} HTTP/1.1\r\n{headers}".encode()
        for sent in (
            (head + b"ZZ\r\n{}\r\n0\r\n\r\n",),
            (head, b"%x\r\n%s\r\n" % (len(whole), whole), b"garbage\r\n\r\n"),
        ):
            begun = time.monotonic()
            answers = spoken(api, *sent)
            assert time.monotonic() - begun < 10
            assert answers.count(b"HTTP/1.1 ") == 1
            assert answers.startswith(b"HTTP/1.1 400 ")
            assert json.loads(answers.partition(b"\r\n\r\n")[2])["code"] == "HYPERFLEET-VAL-005"
    assert total(api) == 1
    assert api.read(cluster) == cluster
    # A request that needs no body is carried out, and its response says so.
    head = f"DELETE {BASE}/clusters/{cluster['id']} HTTP/1.1\r\n{headers}".encode()
    assert spoken(api, head + b"ZZ\r\n").startswith(b"HTTP/1.1 202 ")


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
