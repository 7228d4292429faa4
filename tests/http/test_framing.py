"""Requests are delimited, and their headers read, as any proxy in front of the service does it."""

import http.client
import json
import socket
import time
from io import BytesIO
from urllib.parse import urlsplit

import pytest
from conftest import Api
from helpers_contract import BASE, JSON, check

from hyperfleet import errors

UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
)
GET = f"GET {BASE}/clusters?size=0 HTTP/1.1\r\nHost: test\r\n\r\n".encode()
LAST = f"GET {BASE}/clusters?size=0 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode()


def total(api: Api) -> int:
    return int(check(api.get("/clusters?size=0"))["total"])


class Answers(BytesIO):
    """The bytes received, in the form of a socket that :mod:`http.client` can read."""

    def makefile(self, *_: object) -> "Answers":
        return self

    def close(self) -> None:
        """Does nothing: the next response is still to be read."""


def responses(api: Api, *said: bytes) -> list[tuple[int, bytes]]:
    """Sends these on one connection; returns the status and body of each response."""
    parts = urlsplit(api.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        for one in said:
            connection.sendall(one)
            time.sleep(0.05)
        came = Answers(b"".join(iter(lambda: connection.recv(65536), b"")))
    found = []
    while came.tell() < len(came.getvalue()):
        answer = http.client.HTTPResponse(came)  # type: ignore[arg-type]
        answer.begin()
        found.append((answer.status, answer.read()))
    return found


def creation(name: str, headers: str = "", *, chunked: bool = False) -> tuple[bytes, bytes]:
    """Returns the head and the body of a request that creates a cluster."""
    body = json.dumps({"name": name, "spec": {}}).encode()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"POST {BASE}/clusters HTTP/1.1\r\nHost: test\r\nContent-Type: {JSON}\r\n{headers}{length}"
    head += "\r\n\r\n"
    return head.encode(), b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("asked", [UPGRADE, "Connection: upgrade\r\nUpgrade: websocket\r\n"])
def test_a_request_with_an_upgrade_header_is_read_completely(
    api: Api, asked: str, chunked: bool
) -> None:
    """Java's HTTP client asks to upgrade with its first request."""
    one, two, three = (creation(name, asked, chunked=chunked) for name in ("one", "two", "three"))
    assert [status for status, _ in responses(api, one[0] + one[1], GET, LAST)] == [201, 200, 200]
    assert [status for status, _ in responses(api, *two, LAST)] == [201, 200]
    assert [status for status, _ in responses(api, three[0] + three[1] + GET + LAST)] == [201, 200, 200]
    assert total(api) == 3


def test_a_request_inside_the_body_of_an_upgrade_request_is_not_executed(api: Api) -> None:
    hidden = f"POST {BASE}/clusters HTTP/1.1\r\nContent-Length: 24\r\n\r\n".encode()
    hidden += b'{"name":"h", "spec": {}}'
    for name in (UPGRADE, "Connection: upgrade\r\nUpgrade: websocket\r\n"):
        for method in ("POST", "GET", "PUT", "DELETE"):
            head = f"{method} {BASE}/clusters HTTP/1.1\r\nHost: test\r\n{name}"
            head += f"Content-Length: {len(hidden)}\r\n\r\n"
            assert len(responses(api, head.encode() + hidden, LAST)) == 2
            assert len(responses(api, head.encode(), hidden, LAST)) == 2
        head = f"POST {BASE}/clusters HTTP/1.1\r\nHost: test\r\n{name}Transfer-Encoding: gzip\r\n\r\n"
        assert [status for status, _ in responses(api, head.encode() + hidden)] == [400]
    assert total(api) == 0


def test_requests_pipelined_after_an_upgrade_request_are_answered(api: Api) -> None:
    asking = GET.replace(b"Host: test\r\n", b"Host: test\r\n" + UPGRADE.encode())
    assert [status for status, _ in responses(api, asking + GET + asking + LAST)] == [200] * 4
    assert [status for status, _ in responses(api, asking * 500 + LAST)] == [200] * 501


def test_trailers_are_not_treated_as_headers(api: Api) -> None:
    """A proxy that removes or sets headers need not look at trailers (RFC 9110, 6.5.1)."""
    head, body = creation("one", "Trailer: X-Request-ID\r\n", chunked=True)
    body = body[:-2] + b"X-Request-ID: trailing\r\nIdempotency-Key: \xff\r\n\r\n"
    parts = urlsplit(api.url)
    for said in ((head + body,), (head, body)):
        with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
            for one in said:
                connection.sendall(one)
                time.sleep(0.05)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status in (201, 409)
            assert answer.headers["X-Request-ID"] != "trailing"
    assert total(api) == 1


@pytest.mark.parametrize("piece", [b"X-Filler: " + b"x" * 50 + b"\r\n", b"x" * 60])
def test_the_size_of_trailers_is_limited(api: Api, piece: bytes) -> None:
    head, body = creation("one", chunked=True)
    parts = urlsplit(api.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        connection.sendall(head + body[:-2])
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < begun + 15:
                connection.sendall(piece * 1000)
                time.sleep(0.01)
        assert time.monotonic() < begun + 10
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        connection.sendall(head + body[:-2])
        time.sleep(0.1)
        connection.sendall(piece * 4000)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert errors.HEADERS_TOO_LARGE.encode() in answer
    assert total(api) == 0


def test_a_body_in_chunks_of_one_byte_is_read(api: Api) -> None:
    head, _ = creation("one", chunked=True)
    body = json.dumps({"name": "one", "spec": {"filler": "x" * 50_000}}).encode()
    pieces = b"".join(b"1;why=not\r\n%c\r\n" % byte for byte in body)
    assert [status for status, _ in responses(api, head, pieces + b"0\r\n\r\n" + LAST)] == [201, 200]


def test_a_broken_chunk_after_an_early_response_gets_no_second_response(api: Api) -> None:
    for path in ("/nothing", "/clusters/nothing"):
        head = f"POST {BASE}{path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert [status for status, _ in responses(api, head.encode(), b"ZZ\r\n")] in ([404], [405])


def test_a_broken_chunk_after_a_pipelined_request_does_not_take_its_response(api: Api) -> None:
    head, _ = creation("c1", chunked=True)
    parts = urlsplit(api.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        connection.sendall(GET + head + b"ZZ\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["kind"]) == (200, "ClusterList")
    assert total(api) == 0


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "X: y\nContent-Length: 5",
        "X: y\rContent-Length: 5",
    ],
)
def test_a_request_with_ambiguous_framing_is_refused(api: Api, framing: str) -> None:
    head = f"POST {BASE}/clusters HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n"
    assert [status for status, _ in responses(api, head.encode() + b"0\r\n\r\n" + GET)] == [400]


def test_expect_continue_with_too_large_a_body_gets_413_and_no_100(api: Api) -> None:
    """curl waits like this before it sends a large body."""
    head = f"POST {BASE}/clusters HTTP/1.1\r\nHost: test\r\nContent-Type: {JSON}\r\n"
    head += "Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    [(status, body)] = responses(api, head.encode())
    assert (status, json.loads(body)["code"]) == (413, errors.TOO_LARGE)


def test_expect_continue_over_http_1_0_gets_no_100(api: Api) -> None:
    head, body = creation("one", "Expect: 100-continue\r\n")
    parts = urlsplit(api.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        connection.sendall(head.replace(b"HTTP/1.1", b"HTTP/1.0") + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")


def test_a_target_with_letters_that_are_not_encoded_is_read_as_utf_8(api: Api) -> None:
    api.cluster("one", spec={"city": "Zürich"})
    address = f"{BASE}/clusters?size=1&search=spec.city='Zürich'"
    head = f"GET {address} HTTP/1.1\r\nHost: test\r\nX-City: Zürich\r\n\r\n".encode()
    found = [json.loads(body)["total"] for _, body in responses(api, head, head, LAST)]
    assert found == [1, 1, 1]
    # A path with such letters leads nowhere.
    [(status, _), _] = responses(api, f"GET {BASE}/Zürich HTTP/1.1\r\nHost: t\r\n\r\n".encode(), LAST)
    assert status == 404


@pytest.mark.parametrize("line", ["CONNECT test:443", "GET http://[::/", "GET http://test"])
def test_an_invalid_request_target_gets_the_standard_error(api: Api, line: str) -> None:
    [(status, body)] = responses(api, f"{line} HTTP/1.1\r\nHost: test\r\n\r\n".encode() + GET)
    assert (status, json.loads(body)["code"]) == (400, errors.BAD_REQUEST)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (" HTTP/1.1\r\n", [400]),
        (" HTTP/1.1\r\nHost: one\r\nhost: two\r\n", [400]),
        (" HTTP/1.0\r\nHost: one\r\nHost: one\r\n", [400]),
        # Health probes of load balancers may send no Host.
        (" HTTP/1.0\r\n", [200]),
        (" HTTP/1.1\r\nHost:\r\n", [200, 200]),
        (" HTTP/1.1\r\nHost: my_service.ns.svc:8000\r\n", [200, 200]),
        (" HTTP/1.1\r\nHost: [fe80::1%25eth0]:8000\r\n", [200, 200]),
        (" HTTP/1.1\r\nHost: a b\r\n", [400]),
        (" HTTP/1.1\r\nHost: a/b\r\n", [400]),
        (" HTTP/1.1\r\nHost: me@one\r\n", [400]),
        (" HTTP/1.1\r\nHost: one:80:81\r\n", [400]),
        (" HTTP/1.0\r\nHost: one, two\r\n", [400]),
    ],
)
def test_a_missing_repeated_or_malformed_host_is_refused(
    api: Api, head: str, expected: list[int]
) -> None:
    found = responses(api, f"GET {BASE}/clusters?size=0{head}\r\n".encode() + LAST)
    assert [status for status, _ in found] == expected
    if expected == [400]:
        assert "Host" in json.loads(found[0][1])["detail"]


def received(api: Api, *said: bytes) -> bytes:
    """Sends these on one connection; returns everything received."""
    parts = urlsplit(api.url)
    with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=30) as connection:
        for one in said:
            connection.sendall(one)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_garbage_instead_of_http_gets_one_400_and_corrupts_no_other_response(api: Api) -> None:
    answers = received(api, b"\x00garbage" * 5000)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert answers.startswith(b"HTTP/1.1 400 ")
    for number in range(20):
        api.cluster(f"c{number}", labels={"l": "x" * 60})
    whole = f"GET {BASE}/clusters HTTP/1.1\r\nHost: test\r\n\r\n".encode()
    answers = received(api, whole + b"\x00garbage\r\n\r\n")
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
            answers = received(api, *sent)
            assert time.monotonic() - begun < 10
            assert answers.count(b"HTTP/1.1 ") == 1
            assert answers.startswith(b"HTTP/1.1 400 ")
            assert json.loads(answers.partition(b"\r\n\r\n")[2])["code"] == "HYPERFLEET-VAL-005"
    assert total(api) == 1
    assert api.read(cluster) == cluster
    # A request that needs no body is carried out, and its response says so.
    head = f"DELETE {BASE}/clusters/{cluster['id']} HTTP/1.1\r\n{headers}".encode()
    assert received(api, head + b"ZZ\r\n").startswith(b"HTTP/1.1 202 ")
