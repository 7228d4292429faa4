"""Whom a token names, and where that name is recorded."""

import logging
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from conftest import Api
from issuer import good, key_pair
from tokens import Start, ask, bearer, closed, forge, keys, new, refused, start

from hyperfleet import errors
from hyperfleet.contract import document as contract
from hyperfleet.observe.log import _Context

pytestmark = pytest.mark.slow

__all__ = ["closed", "keys", "start"]


@pytest.mark.parametrize(
    ("claims", "identity"),
    [
        ({}, "alice@example.com"),
        ({"email": None, "username": "al"}, "al"),
        ({"email": None}, "alice"),
        ({"email": None, "preferred_username": None}, "f:1234:alice"),
        ({"email": "  bob@example.com \t"}, "bob@example.com"),
        ({"email": " "}, "alice"),
        ({"email": ["bob@example.com"]}, "alice"),
        ({"email": 7}, "alice"),
        ({"email": "b" * 256}, "b" * 256),
        ({"email": "b" * 257}, "alice"),
        ({"email": "bob\r\n2026 INFO forged"}, "alice"),
        ({"email": "bob\0"}, "alice"),
        ({"email": "bob\u202e"}, "alice"),
        ({"email": "bob\ud800"}, "alice"),
        ({"email": "bob\u0085ob"}, "alice"),
        ({"email": "bob\u00a0"}, "bob"),
        ({"email": "Zoë@example.com"}, "Zoë@example.com"),
    ],
)
def test_the_identity_is_the_first_usable_claim(
    closed: Api, claims: dict[str, Any], identity: str
) -> None:
    response = closed.post("/clusters", json=new(), headers=bearer(key_pair().token(**claims)))
    assert response.status_code == 201, response.text
    assert response.json()["created_by"] == response.json()["updated_by"] == identity


def test_a_setting_chooses_the_claims_that_name_the_caller(start: Start) -> None:
    api = start(identity_claims=("sub",))
    response = api.post("/clusters", json=new(), headers=bearer(key_pair().token()))
    assert response.json()["created_by"] == "f:1234:alice"


def test_writes_require_an_identity_and_reads_do_not(closed: Api) -> None:
    nameless = key_pair().token(email=None, preferred_username=None, sub=None)
    assert ask(closed, nameless).status_code == 200
    cluster = closed.post("/clusters", json=new(), headers=bearer(key_pair().token())).json()
    for path, method, _ in contract.operations(contract.load()):
        if method == "get":
            continue
        url = "/" + path.replace("{cluster_id}", cluster["id"]).replace("{nodepool_id}", cluster["id"])
        refused(closed.request(method, url, json={}, headers=bearer(nameless)), errors.NO_IDENTITY)


def test_each_change_is_recorded_with_its_caller(start: Start, sql: psycopg.Connection) -> None:
    closed = start()

    def by(name: str) -> dict[str, str]:
        return bearer(key_pair().token(email=f"{name}@example.com"))

    cluster = closed.post("/clusters", json=new(), headers=by("ann")).json()
    path = f"/clusters/{cluster['id']}"
    changed = closed.patch(path, json={"spec": {"a": 1}}, headers=by("ben")).json()
    assert (changed["created_by"], changed["updated_by"]) == ("ann@example.com", "ben@example.com")
    report = {
        "adapter": "dns",
        "observed_generation": 2,
        "conditions": [{"type": "Available", "status": "True"}],
    }
    assert closed.put(path + "/statuses", json=report, headers=by("cat")).status_code == 201
    deleted = closed.delete(path, headers=by("dan"))
    assert deleted.status_code == 202, deleted.text
    assert deleted.json()["deleted_by"] == "dan@example.com"
    gone = closed.post(path + "/force-delete", json={"reason": "test"}, headers=by("eve"))
    assert gone.status_code == 204, gone.text
    tables = sql.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    ).fetchall()
    rows = [str(sql.execute(f'SELECT * FROM "{name}"').fetchall()) for (name,) in tables]  # type: ignore[arg-type]
    assert any("eve@example.com" in row for row in rows)


def logged_callers(caplog: pytest.LogCaptureFixture, wanted: int) -> list[str]:
    """The callers in the request log, sorted. Waits, as a line is written after its response is sent."""
    for _ in range(200):
        lines = [record for record in caplog.records if record.name == "hyperfleet.request"]
        if len(lines) >= wanted:
            break
        time.sleep(0.02)
    return sorted(record.caller for record in lines)  # type: ignore[attr-defined]


def test_log_lines_name_the_caller_and_not_the_token(
    closed: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(_Context())
    token = key_pair().token()
    with caplog.at_level(logging.DEBUG, "hyperfleet"):
        assert ask(closed, token).status_code == 200
        assert closed.get("/clusters").status_code == 401
        ask(closed, forge({"alg": "RS256", "kid": "two"}, good()))
        assert logged_callers(caplog, 3) == ["-", "-", "alice@example.com"]
    assert not any(token in record.getMessage() for record in caplog.records)


def test_requests_on_one_connection_do_not_inherit_the_caller(
    closed: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """The second request is pipelined, and starts while the first still has its context."""
    caplog.handler.addFilter(_Context())
    where = urlsplit(closed.url)
    first = (
        "GET /api/hyperfleet/v1/clusters HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {key_pair().token()}\r\n\r\n"
    )
    second = "GET /api/hyperfleet/v1/errors HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with (
        caplog.at_level(logging.INFO, "hyperfleet"),
        socket.create_connection((where.hostname, where.port), 10) as connection,
    ):
        connection.sendall((first + second).encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert logged_callers(caplog, 2) == ["-", "alice@example.com"]
