"""The keys that verify tokens: fetched, renewed, withdrawn, and kept while their server fails."""

import asyncio
import json
import logging
import os
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from issuer import KeyPair, KeyServer, change, good, key_pair, key_set, self_signed
from jose.utils import base64url_encode
from tokens import Start, ask, bearer, forge, keys, refused, start

from hyperfleet import errors
from hyperfleet.auth import keys as keys_module
from hyperfleet.auth import remote
from hyperfleet.auth.guard import Guard
from hyperfleet.auth.tokens import Verifier
from hyperfleet.errors import ConfigurationError
from hyperfleet.settings.catalogue import Settings
from hyperfleet.watched import LOOK_EVERY

pytestmark = pytest.mark.slow

__all__ = ["keys", "start"]


def test_a_new_key_is_accepted_alongside_the_old_one(start: Start, keys: KeyServer) -> None:
    api = start()
    old, new = key_pair(), key_pair("two")
    assert ask(api, old.token()).status_code == 200
    keys.pairs = [old, new]
    assert ask(api, new.token()).status_code == 200
    assert ask(api, old.token()).status_code == 200


def test_a_new_key_works_at_once_for_all_requests_that_arrive_during_its_fetch(
    start: Start, keys: KeyServer
) -> None:
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.pairs.append(key_pair("two"))
    keys.delay = 0.5
    tokens = [key_pair("two").token(jti=str(number)) for number in range(10)]
    with ThreadPoolExecutor(10) as threads:
        statuses = [one.status_code for one in threads.map(lambda token: ask(api, token), tokens)]
    assert statuses == [200] * 10
    assert len(keys.asked) == 2


@pytest.fixture
def renewed_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets keys be renewed after 0.2 s, and a failed renewal be repeated after 0.1 s."""
    monkeypatch.setattr(keys_module, "RENEW_AFTER", 0.2)
    monkeypatch.setattr(keys_module, "RETRY_EVERY", 0.1)


@pytest.mark.usefixtures("renewed_quickly")
def test_a_new_key_works_at_once_even_during_a_fetch_of_keys_without_it(
    start: Start, keys: KeyServer
) -> None:
    api, new = start(), key_pair("two")
    assert ask(api, key_pair().token()).status_code == 200
    time.sleep(0.3)
    keys.delay = 0.5
    assert ask(api, key_pair().token()).status_code == 200
    while len(keys.asked) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    keys.pairs.append(new)
    assert ask(api, new.token()).status_code == 200


def test_fifty_unknown_key_ids_cause_a_single_fetch(start: Start, keys: KeyServer) -> None:
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    assert len(keys.asked) == 1
    for number in range(50):
        refused(ask(api, forge({"alg": "RS256", "kid": f"k{number}"}, good())), errors.UNKNOWN_KEY)
        assert ask(api, key_pair().token()).status_code == 200
    assert len(keys.asked) == 2


def test_a_withdrawn_key_stops_working_within_a_minute(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keys_module.STALE_AFTER <= 60
    monkeypatch.setattr(keys_module, "STALE_AFTER", 0.5)
    keys.pairs.append(key_pair("two"))
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.pairs = [key_pair("two")]
    time.sleep(0.6)
    refused(ask(api, key_pair().token()), errors.UNKNOWN_KEY)
    assert ask(api, key_pair("two").token()).status_code == 200
    # Even the last one.
    keys.pairs = []
    time.sleep(0.6)
    refused(ask(api, key_pair("two").token()), errors.UNKNOWN_KEY)


@pytest.mark.usefixtures("renewed_quickly")
def test_keys_in_use_are_renewed_before_they_are_stale(start: Start, keys: KeyServer) -> None:
    keys.pairs.append(key_pair("two"))
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.pairs = [key_pair("two")]
    time.sleep(0.3)
    assert ask(api, key_pair("two").token()).status_code == 200
    for _ in range(100):
        if len(keys.asked) > 1 and ask(api, key_pair().token()).status_code == 401:
            break
        time.sleep(0.02)
    refused(ask(api, key_pair().token()), errors.UNKNOWN_KEY)


@pytest.mark.usefixtures("renewed_quickly")
def test_a_failed_fetch_does_not_extend_the_life_of_a_withdrawn_key(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.pairs.append(key_pair("two"))
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.broken = (500, {}, b"no")
    time.sleep(0.3)
    assert ask(api, key_pair().token()).status_code == 200
    while len(keys.asked) < 2:
        time.sleep(0.01)
    monkeypatch.setattr(keys_module, "RENEW_AFTER", 1.0)
    keys.broken, keys.pairs = None, [key_pair("two")]
    # A second after the keys were fetched, not after the failed attempt.
    time.sleep(0.8)
    for _ in range(20):
        if ask(api, key_pair().token()).status_code == 401:
            break
        time.sleep(0.02)
    refused(ask(api, key_pair().token()), errors.UNKNOWN_KEY)


@pytest.mark.parametrize(
    "broken",
    [
        (500, {}, b"no"),
        (404, {}, b"no"),
        (302, {"Location": "http://127.0.0.1:1/"}, b""),
        (200, {}, b"no JSON"),
        (200, {}, b"[]"),
        (200, {}, b'{"keys": 1}'),
        (200, {}, b'{"keys": [{"kid": "one"}, 7]}'),
        (200, {}, b"[" * 100_000),
        (200, {}, b" " * 2_000_000),
    ],
)
def test_the_old_keys_keep_working_when_the_key_server_fails(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    monkeypatch.setattr(keys_module, "STALE_AFTER", 0.0)
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.broken = broken
    assert ask(api, key_pair().token()).status_code == 200
    assert len(keys.asked) == 2
    refused(ask(api, forge({"alg": "RS256", "kid": "two"}, good())), errors.UNKNOWN_KEY)


def test_a_key_server_that_fails_is_not_asked_again_by_every_request(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RENEW_AFTER", 0.2)
    monkeypatch.setattr(keys_module, "RETRY_EVERY", 0.5)
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.broken = (500, {}, b"no")
    time.sleep(0.6)
    began = time.monotonic()
    for _ in range(20):
        assert ask(api, key_pair().token()).status_code == 200
        time.sleep(0.01)
    assert 1 <= len(keys.asked) - 1 <= 1 + (time.monotonic() - began) / 0.5


def test_a_redirect_by_the_key_server_is_not_followed(start: Start, keys: KeyServer) -> None:
    imposter = KeyPair("evil")
    with KeyServer(imposter) as evil:
        keys.broken = (302, {"Location": evil.url}, b"")
        response = ask(start(), imposter.token())
        assert (response.status_code, response.json()["code"]) == (503, errors.NO_KEYS)
        assert evil.asked == []


def test_the_old_keys_keep_working_when_the_key_server_is_down(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "STALE_AFTER", 0.0)
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.stop()
    assert ask(api, key_pair().token()).status_code == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"X-Filler: ",
        b"Transfer-Encoding: chunked\r\n\r\n2; filler=",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\nX-Filler: ",
    ],
    ids=["headers", "chunk", "trailers"],
)
def test_the_old_keys_keep_working_when_the_key_server_answers_byte_by_byte(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(keys_module, "STALE_AFTER", 0.0)
    monkeypatch.setattr(remote, "TIMEOUT", 1.0)
    monkeypatch.setattr(remote, "DEADLINE", 2.0)
    api = start()
    assert ask(api, key_pair().token()).status_code == 200
    keys.stop()
    with socket.create_server(("127.0.0.1", int(keys.url.rpartition(":")[2]))) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + begun)
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        start_time = time.monotonic()
        assert ask(api, key_pair().token()).status_code == 200
        assert 0.8 < time.monotonic() - start_time < 8


def test_requests_get_503_until_keys_can_be_fetched(
    service: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RETRY_EVERY", 0.2)
    with KeyServer(key_pair()) as keys:
        keys.broken = (503, {}, b"")
        api = service(no_auth=False, jwk_cert_url=keys.url)
        response = ask(api, key_pair().token())
        assert (response.status_code, response.json()["code"]) == (503, errors.NO_KEYS)
        assert int(response.headers["Retry-After"]) > 0
        assert keys.url not in response.text
        keys.broken = None
        time.sleep(0.3)
        assert ask(api, key_pair().token()).status_code == 200


def test_concurrent_requests_fetch_the_keys_once(start: Start, keys: KeyServer) -> None:
    api = start()
    token = key_pair().token()
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(requests.get(
            api.base + "/clusters", headers=bearer(token), timeout=30).status_code))
        for _ in range(20)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 20
    assert len(keys.asked) == 1


def test_a_key_file_is_read_again_when_it_changes(
    service: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(key_set(key_pair())))
    api = service(no_auth=False, jwk_cert_url="", jwk_cert_file=file)
    assert ask(api, key_pair().token()).status_code == 200
    refused(ask(api, key_pair("two").token()), errors.UNKNOWN_KEY)
    change(file, json.dumps(key_set(key_pair("two"))))
    assert ask(api, key_pair("two").token()).status_code == 200
    refused(ask(api, key_pair().token()), errors.UNKNOWN_KEY)
    with caplog.at_level(logging.ERROR):
        for broken in ("no JSON", "{", "[]", '{"keys": [{"kty": "oct", "kid": "two", "k": "eA"}]}'):
            change(file, broken)
            assert ask(api, key_pair("two").token()).status_code == 200
            assert ask(api, key_pair("two").token()).status_code == 200
    assert sum("cannot be used" in record.message for record in caplog.records) == 4
    change(file, None)
    assert ask(api, key_pair("two").token()).status_code == 200
    # A file that takes its place may have the same size and time.
    file.write_text(json.dumps(key_set(key_pair())) + " " * 10_000)
    time.sleep(LOOK_EVERY)
    assert ask(api, key_pair().token()).status_code == 200
    beside, status = tmp_path / "beside.json", file.stat()
    beside.write_text(json.dumps(key_set(key_pair("two"))).ljust(status.st_size))
    os.utime(beside, ns=(status.st_atime_ns, status.st_mtime_ns))
    beside.replace(file)
    time.sleep(LOOK_EVERY)
    assert ask(api, key_pair("two").token()).status_code == 200
    file.unlink()
    # Kubernetes replaces a symbolic link.
    other = tmp_path / "other.json"
    file.symlink_to(other)
    change(other, json.dumps(key_set(key_pair())))
    assert ask(api, key_pair().token()).status_code == 200


def test_keys_from_a_file_and_a_url_are_combined(start: Start, keys: KeyServer, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(key_set(key_pair("two"))))
    api = start(jwk_cert_file=file)
    assert ask(api, key_pair("two").token()).status_code == 200
    assert keys.asked == []
    assert ask(api, key_pair().token()).status_code == 200


def test_tokens_of_each_issuer_must_be_signed_with_its_own_keys(service: Start, tmp_path: Path) -> None:
    first, second, shared = key_pair("one"), key_pair("two"), key_pair("three")
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(key_set(second)))
    with KeyServer(first) as a, KeyServer(shared) as common:
        api = service(
            no_auth=False,
            jwk_cert_url=common.url,
            jwt_issuers=(f"https://a={a.url}", f"https://b={file}", "https://c"),
        )
        for pair, mine in ((first, "https://a"), (second, "https://b"), (shared, "https://c")):
            for issuer in ("https://a", "https://b", "https://c"):
                response = ask(api, pair.token(iss=issuer))
                if issuer == mine:
                    assert response.status_code == 200
                else:
                    refused(response, errors.UNKNOWN_KEY)
            refused(ask(api, pair.token(iss="https://d")), errors.BAD_ISSUER)


def test_keys_that_cannot_be_trusted_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    rs, es = key_pair(), key_pair("curve", "ES256")
    off_curve = {**es.jwk(kid="off"), "y": es.jwk()["x"]}
    usable = keys_module.parse_keys(
        json.dumps(
            {
                "keys": [
                    rs.jwk(),
                    es.jwk(),
                    rs.jwk(kid="enc", use="enc"),
                    rs.jwk(kid="ops", key_ops=["sign"]),
                    rs.jwk(kid="hmac", alg="HS256"),
                    rs.jwk(kid=""),
                    rs.jwk(kid=7),
                    {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
                    {"kty": "OKP", "crv": "Ed25519", "kid": "okp", "x": "eA"},
                    {"kty": "RSA", "kid": "half", "e": "AQAB"},
                    off_curve,
                    # Verifying with it would take long.
                    rs.jwk(kid="huge", n=base64url_encode((2**16384 + 1).to_bytes(2049)).decode()),
                    # Only the public members are read, whatever a set leaks beyond them.
                    rs.jwk(kid="leaked", d="not a number"),
                    es.jwk(kid="leaked", d="not a number"),
                    # Numbers instead of strings, some of which would be taken for a size.
                    rs.jwk(kid="number", e=65537),
                    rs.jwk(kid="large", e=10**400),
                    es.jwk(kid="far", y=10**400),
                    KeyPair("short", bits=1024).jwk(),
                    None,
                    "x",
                ]
            }
        )
    )
    leaked = {("leaked", "RS256"), ("leaked", "ES256")}
    assert set(usable) == {("one", "RS256"), ("curve", "ES256"), *leaked}
    with_any = keys_module.parse_keys(
        json.dumps({"keys": [{k: v for k, v in rs.jwk().items() if k != "alg"}]})
    )
    assert set(with_any) == {("one", "RS256"), ("one", "RS384"), ("one", "RS512")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("[]", "this is not a JSON Web Key Set"),
        ('{"keys": {}}', "this is not a JSON Web Key Set"),
        ("[" * 100_000, "this is not a JSON Web Key Set"),
        ('{"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}', "no key that can verify"),
    ],
)
def test_a_key_file_without_usable_keys_is_a_configuration_error(
    text: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        Guard(Settings(jwk_cert_url="", jwk_cert_file=file))


def test_keys_are_fetched_over_verified_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: KeyServer
) -> None:
    cert, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    keys.server.socket = context.wrap_socket(keys.server.socket, server_side=True)
    url = keys.url.replace("http:", "https:").replace("127.0.0.1", "localhost")
    # Variables that would send the request elsewhere, or replace the certificates that it trusts.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")

    def verify(**settings: Any) -> Any:
        verifier = Verifier(Settings(jwk_cert_url=url, **settings))
        return asyncio.run(verifier.claims(key_pair().token()))[0]

    with pytest.raises(errors.Problem) as stranger:
        verify()
    assert stranger.value.entry.code == errors.NO_KEYS
    assert verify(jwk_cert_ca_file=cert)["email"] == "alice@example.com"
