"""The bodies of requests: JSON that is broken, too deep, too large or of another type is refused."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import requests
from conftest import Api
from helpers_contract import (
    BASE,
    JSON,
    PROBLEM,
    check,
    problem,
)

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


def test_an_integer_may_have_a_thousand_digits_and_not_one_more(api: Api) -> None:
    for digits, code in ((1000, 201), (1001, 400)):
        body = f'{{"name": "c{digits}", "spec": {{"a": {"9" * digits}}}}}'
        assert create(api, body).status_code == code, digits


def test_an_integer_of_5000_digits_gets_the_standard_error(api: Api) -> None:
    problem(create(api, f'{{"name": "c1", "spec": {{"a": {"9" * 5_000}}}}}'), 400)


def test_nul_and_lone_surrogates_are_refused_anywhere_in_a_body(api: Api) -> None:
    for character in ("\\u0000", "\\ud800", "\\uDBFF", "\\udfff", "x\\ud83dx", "\\ude80\\ud83d"):
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


def post_chunked(api: Api, path: str, chunks: Iterator[bytes]) -> tuple[int, dict[str, str], bytes]:
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
    status, headers, body = post_chunked(api, f"{BASE}/clusters", (b" " * 65536 for _ in range(17)))
    assert status == 413, body
    assert headers["content-type"] == PROBLEM
    assert json.loads(body)["code"].startswith("HYPERFLEET-LMT-")
    assert json.loads(body)["trace_id"] == headers["x-request-id"]
    assert total(api) == 0


def test_a_chunked_body_is_read(api: Api) -> None:
    good = b'{"name": "c1", "spec": {"a": "' + b"x" * 1000 + b'"}}'
    status, _, body = post_chunked(api, f"{BASE}/clusters", iter([good[:10], good[10:500], good[500:]]))
    assert status == 201, body
    assert json.loads(body)["spec"] == {"a": "x" * 1000}


def test_the_limit_on_the_body_size_is_configurable(service: Callable[..., Api]) -> None:
    api = service(max_body_size=2048)
    body = problem(create(api, '{"name": "c1", "spec": {}}' + " " * 2048), 413)
    assert "at most 2048 bytes" in body["detail"]
    check(create(api, '{"name": "c1", "spec": {}}' + " " * 1024), 201)
