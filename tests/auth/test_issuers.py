"""Issuers with their own settings: which of their tokens are valid, and whom those name."""

import asyncio
import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Api
from issuer import Answer, KeyServer, change, key_pair, self_signed
from process import Serving

from hyperfleet import errors
from hyperfleet.auth import keys as keys_module
from hyperfleet.auth import remote
from hyperfleet.auth.guard import Guard
from hyperfleet.auth.identity import MAX_LENGTH
from hyperfleet.auth.tokens import Verifier
from hyperfleet.errors import ConfigurationError
from hyperfleet.settings.catalogue import CONSOLES, PUBLIC_KEYS, Settings
from hyperfleet.settings.issuers import parse

pytestmark = pytest.mark.slow

Start = Callable[..., Api]

A, B = "https://a.example", "https://b.example"


@pytest.fixture
def keys() -> Iterator[dict[str, KeyServer]]:
    """A key server for each of two issuers."""
    with KeyServer(key_pair("one")) as one, KeyServer(key_pair("two")) as two:
        yield {A: one, B: two}


@pytest.fixture
def start(service: Start, keys: dict[str, KeyServer]) -> Start:
    """Starts services with settings of the first issuer, of the second if given, and of the service."""

    def start(a: dict[str, str], b: dict[str, str] | None = None, **settings: Any) -> Api:
        given = [(A, a)] if b is None else [(A, a), (B, b)]
        configs = [{"issuer_url": url, "jwk_cert_url": keys[url].url, **more} for url, more in given]
        return service(no_auth=False, jwk_cert_url="", jwt_configs=parse(configs), **settings)

    return start


def of(issuer: str, key: str = "", **claims: Any) -> str:
    """A token of an issuer."""
    return key_pair(key or ("one" if issuer == A else "two")).token(iss=issuer, **claims)


def ask(api: Api, token: str, header: str = "Authorization", **more: str) -> requests.Response:
    return api.get("/clusters", headers={header: f"Bearer {token}", **more})


def create(api: Api, headers: Any) -> requests.Response:
    return api.post("/clusters", json={"name": f"c{uuid.uuid4().hex}", "spec": {}}, headers=headers)


def creator(api: Api, token: str, header: str = "Authorization", **more: Any) -> str:
    """Creates a cluster and returns the caller recorded for it."""
    created = create(api, {header: f"Bearer {token}", **more})
    assert created.status_code == 201, created.text
    assert created.json()["created_by"] == created.json()["updated_by"]
    return created.json()["created_by"]


def refused(response: requests.Response, code: str, detail: str = "") -> None:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (401, code), response.text
    assert detail in problem["detail"]
    assert detail in response.headers["WWW-Authenticate"]


def test_a_token_must_be_for_the_audience_of_its_own_issuer(start: Start) -> None:
    api = start({"audience": "for-a"}, {"audience": "for-b"}, jwt_audiences=("for-all",))
    for issuer, audience, other in ((A, "for-a", "for-b"), (B, "for-b", "for-a")):
        assert ask(api, of(issuer, aud=audience)).status_code == 200
        assert ask(api, of(issuer, aud=["x", audience])).status_code == 200
        for wrong in (other, "for-all", None, [other]):
            response = ask(api, of(issuer, aud=wrong))
            refused(response, errors.INVALID_TOKEN, f"another audience. Expected: {audience}.")


@pytest.mark.parametrize("audience", ["флот", "for-ä", 'a"b', "a\\b", "a\nb"])
def test_an_audience_that_a_header_cannot_quote_is_compared_and_not_shown(
    start: Start, audience: str
) -> None:
    api = start({"audience": audience}, {"audience": "fleet"})
    assert ask(api, of(A, aud=audience)).status_code == 200
    for token in (of(A, aud="fleet"), of(A, aud=None), of(B, aud=audience), of(B, aud=["x", audience])):
        response = ask(api, token)
        refused(response, errors.INVALID_TOKEN, "issued for another audience.")
        assert response.headers["WWW-Authenticate"].isascii()
        assert audience not in response.text
        assert audience not in response.headers["WWW-Authenticate"]


def test_a_token_is_verified_with_the_keys_of_its_own_issuer(
    start: Start, keys: dict[str, KeyServer]
) -> None:
    api = start({"audience": "fleet"}, {"audience": "fleet"})
    assert ask(api, of(A)).status_code == ask(api, of(B)).status_code == 200
    refused(ask(api, of(A, key="two")), errors.INVALID_TOKEN, errors.UNKNOWN_KEY)
    refused(ask(api, of(B, key="one")), errors.INVALID_TOKEN, errors.UNKNOWN_KEY)
    refused(ask(api, of("https://c.example", key="one")), errors.INVALID_TOKEN, errors.BAD_ISSUER)
    assert all(server.asked for server in keys.values())


def test_two_issuers_with_the_same_key_id_cannot_sign_for_each_other(
    start: Start, keys: dict[str, KeyServer]
) -> None:
    twin = type(key_pair())("one")
    keys[B].pairs = [twin]
    api = start({}, {})
    for _ in range(2):
        assert ask(api, of(A)).status_code == ask(api, twin.token(iss=B)).status_code == 200
        refused(ask(api, twin.token(iss=A)), errors.INVALID_TOKEN, errors.BAD_SIGNATURE)
        refused(ask(api, of(B, key="one")), errors.INVALID_TOKEN, errors.BAD_SIGNATURE)


def test_a_key_server_that_does_not_answer_blocks_no_callers_of_another_issuer(
    start: Start, keys: dict[str, KeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine may need longer than the usual timeout.
    monkeypatch.setattr(remote, "TIMEOUT", 20.0)
    api, answers = start({}, {}), threading.Event()

    def hang(*_: object) -> Answer:
        answers.wait(20)
        return 503, {}, b""

    keys[A].answer = hang

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{api.base}/clusters", headers=headers, timeout=30).status_code

    with ThreadPoolExecutor(40) as threads:
        waiting = [threads.submit(status, of(A)) for _ in range(40)]
        deadline = time.monotonic() + 10
        while not keys[A].asked and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        try:
            assert status(of(B)) == 200
            assert not any(one.done() for one in waiting)
        finally:
            answers.set()
        assert {one.result() for one in waiting} == {503}


def test_an_issuer_inherits_what_it_does_not_set_from_the_settings_for_all_issuers(start: Start) -> None:
    assert parse([{"issuer_url": A, "header": "  "}]) == parse([{"issuer_url": A}])
    api = start({"audience": "for-a", "identity_claim": "sub"}, {}, jwt_audiences=("for-all",))
    assert creator(api, of(A, aud="for-a")) == "f:1234:alice"
    assert creator(api, of(B, aud="for-all")) == "alice@example.com"
    assert creator(api, of(B, aud="for-all", email=None)) == "alice"
    refused(ask(api, of(B, aud="for-a")), errors.INVALID_TOKEN, "Expected: for-all.")
    # Only the claim that is configured counts, and no other replaces it.
    nameless = of(A, aud="for-a", sub=None)
    assert ask(api, nameless).status_code == 200
    refused(create(api, {"Authorization": f"Bearer {nameless}"}), errors.NO_IDENTITY)


def test_keys_from_a_file_and_a_url_are_combined_for_an_issuer(
    start: Start, keys: dict[str, KeyServer], tmp_path: Path
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [key_pair("three").jwk()]}))
    api = start({"jwk_cert_file": str(file)}, {})
    assert ask(api, of(A, key="three")).status_code == 200
    assert keys[A].asked == []
    assert ask(api, of(A)).status_code == 200
    refused(ask(api, of(B, key="three")), errors.INVALID_TOKEN, errors.UNKNOWN_KEY)


def test_tokens_of_each_issuer_are_accepted_in_its_own_header_only(start: Start) -> None:
    api = start({}, {"header": "X-Token"})
    assert ask(api, of(A)).status_code == 200
    assert ask(api, of(B), "X-Token").status_code == 200
    assert ask(api, of(B), "x-token").status_code == 200
    assert api.get("/clusters", headers={"X-Token": of(B)}).status_code == 200
    assert api.get("/clusters", headers={"X-Token": f"bearer  {of(B)} "}).status_code == 200
    # And in no other header.
    refused(ask(api, of(A), "X-Token"), errors.INVALID_TOKEN, errors.BAD_ISSUER)
    refused(ask(api, of(B)), errors.INVALID_TOKEN, errors.BAD_ISSUER)
    for header in ({"X-Token": "Basic dTpw"}, {"X-Token": "nonsense"}):
        refused(api.get("/clusters", headers=header), errors.INVALID_TOKEN, errors.MALFORMED_TOKEN)
    for header in ({}, {"X-Token": ""}, {"X-Token": "Bearer"}, {"X-Token": "Bearer "}):
        refused(api.get("/clusters", headers=header), errors.NO_TOKEN)


def test_a_page_of_a_console_may_send_its_token_in_the_header_of_the_issuer(start: Start) -> None:
    api = start({}, {"header": "X-Service-Token", "identity_header": "X-Caller"})
    for header, allowed in (("authorization", True), ("x-service-token", True), ("x-caller", False)):
        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": header}
        answer = api.options("/clusters", headers={"Origin": CONSOLES[0], **asked})
        assert answer.ok is allowed, header


def test_the_first_valid_token_of_two_headers_counts(start: Start) -> None:
    api = start({}, {"header": "X-Token"})
    mine, theirs = of(A, email="ann@a.example"), of(B, email="ben@b.example")
    assert creator(api, mine, **{"X-Token": theirs}) == "ann@a.example"
    # A gateway may leave the caller's own token where it was.
    assert creator(api, of("https://c.example", key="one"), **{"X-Token": theirs}) == "ben@b.example"
    assert creator(api, mine, **{"X-Token": "nonsense"}) == "ann@a.example"
    expired = of(A, exp=int(time.time()) - 60)
    refused(ask(api, expired, **{"X-Token": "nonsense"}), errors.EXPIRED_TOKEN)


def test_a_repeated_header_is_rejected(start: Start) -> None:
    api = start({"header": "X-Token", "identity_header": "X-Caller"})
    for name, code in (("X-Token", errors.INVALID_TOKEN), ("X-Caller", errors.NO_IDENTITY)):
        status, problem = api.answer(("X-Token", of(A)), ("X-Caller", "ann"), (name, "ben"))
        assert (status, problem["code"]) == (401, code)
        assert problem["detail"] == f"There must be exactly one {name} header."


def test_a_repeated_header_does_not_invalidate_the_token_in_another_one(start: Start) -> None:
    api = start({}, {"header": "X-Token"})
    for first in ("", "Basic dTpw", f"Bearer {of(A)}"):
        for second in ("Bearer", "half", f"Bearer {of(A)}"):
            twice = ("Authorization", first), ("Authorization", second)
            assert api.answer(*twice, ("X-Token", of(B)))[0] == 200


def test_the_authorization_header_is_ignored_if_no_issuer_uses_it(start: Start) -> None:
    api = start({"header": "X-Token"})
    refused(ask(api, of(A)), errors.NO_TOKEN)
    assert ask(api, of(A), "X-Token", Authorization="half").status_code == 200


def test_an_identity_must_match_the_pattern_of_its_issuer(start: Start) -> None:
    accounts = "^system:serviceaccount:fleet:.*$"
    api = start({"identity_claim": "sub", "identity_claim_pattern": accounts}, {})
    mine = "system:serviceaccount:fleet:sentinel"
    assert creator(api, of(A, sub=mine)) == mine
    # Whitespace around a name is not part of it.
    assert creator(api, of(A, sub=f"{mine}\n")) == mine
    # The other issuer has no pattern.
    assert creator(api, of(B)) == "alice@example.com"
    for sub in ("system:serviceaccount:other:x", f"x{mine}", None, "", mine + "y" * 256):
        token = of(A, sub=sub)
        refused(ask(api, token), errors.NO_IDENTITY)
        refused(create(api, {"Authorization": f"Bearer {token}"}), errors.NO_IDENTITY)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "^(.*a){20}$", "(x+x+)+y"])
def test_patterns_prone_to_backtracking_are_matched_quickly(pattern: str) -> None:
    verifier = Verifier(
        Settings(
            jwt_configs=parse([{"issuer_url": A, "jwk_cert_url": A, "identity_claim_pattern": pattern}])
        )
    )
    issuer = verifier.issuers["Authorization"][A]
    start = time.thread_time()
    for letter in "ax":
        for length in (MAX_LENGTH - 1, 10 * MAX_LENGTH):
            with pytest.raises(errors.Problem):
                issuer.identity({"email": letter * length + "!"}, {})  # type: ignore[arg-type]
    assert time.thread_time() - start < 0.5


def test_a_gateway_can_name_the_caller_if_the_issuer_allows_it(start: Start) -> None:
    api = start({"identity_header": "X-Caller"}, {})
    token = of(A)
    # The same token each time: what is cached for it does not include the caller.
    for name in ("ann@a.example", "ben@a.example", "ann@a.example"):
        assert creator(api, token, **{"X-Caller": name}) == name
        assert creator(api, token, **{"x-caller": f"{name} \t"}) == name
    assert creator(api, token) == "alice@example.com"
    assert creator(api, token, **{"X-Caller": ""}) == "alice@example.com"
    assert creator(api, token, **{"X-Caller": "Zoë@a.example".encode()}) == "Zoë@a.example"
    # Not for tokens of another issuer, and not without a valid token.
    assert creator(api, of(B), **{"X-Caller": "ann@a.example"}) == "alice@example.com"
    refused(create(api, {"X-Caller": "ann@a.example"}), errors.NO_TOKEN)
    refused(create(api, {"Authorization": "Bearer x", "X-Caller": "ann"}), errors.INVALID_TOKEN)


def test_all_changes_are_recorded_with_the_caller_that_the_gateway_names(start: Start) -> None:
    api = start({"identity_header": "X-Caller"})

    def by(name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {of(A)}", "X-Caller": name}

    cluster = create(api, by("ann")).json()
    path = f"/clusters/{cluster['id']}"
    changed = api.patch(path, json={"spec": {"a": 1}}, headers=by("ben")).json()
    assert (changed["created_by"], changed["updated_by"]) == ("ann", "ben")
    assert api.delete(path, headers=by("dan")).json()["deleted_by"] == "dan"


@pytest.mark.parametrize("name", ["b" * (MAX_LENGTH + 1), "bob\u202e".encode(), b"bob\xff", "b\u0085b"])
def test_an_unusable_name_from_the_gateway_is_not_replaced_by_that_of_the_token(
    start: Start, name: str | bytes
) -> None:
    api = start({"identity_header": "X-Caller"})
    headers = {"Authorization": f"Bearer {of(A)}", "X-Caller": name}
    refused(create(api, headers), errors.NO_IDENTITY, "The X-Caller header has no usable name.")
    assert creator(api, of(A), **{"X-Caller": "b" * MAX_LENGTH}) == "b" * MAX_LENGTH


def test_the_pattern_applies_to_names_from_the_gateway_too(start: Start) -> None:
    api = start({"identity_header": "X-Caller", "identity_claim_pattern": "@a[.]example$"})
    token = of(A, email="gateway@a.example")
    assert creator(api, token, **{"X-Caller": "ann@a.example"}) == "ann@a.example"
    refused(ask(api, token, **{"X-Caller": "ann@b.example"}), errors.NO_IDENTITY)


def test_without_an_identity_header_no_other_header_names_the_caller(
    service: Start, keys: dict[str, KeyServer]
) -> None:
    for settings in (
        {"jwt_issuers": (f"{A}={keys[A].url}",)},
        {"jwt_configs": parse([{"issuer_url": A, "jwk_cert_url": keys[A].url}])},
        {"jwk_cert_url": keys[A].url},
    ):
        api = service(**{"no_auth": False, "jwk_cert_url": "", **settings})
        headers = {"X-HyperFleet-Identity": "eve", "X-Forwarded-User": "eve", "X-Caller": "eve"}
        assert creator(api, of(A), **headers) == "alice@example.com"


def test_a_key_server_is_verified_with_the_issuers_own_certificates(
    keys: dict[str, KeyServer], tmp_path: Path
) -> None:
    cert, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    keys[A].server.socket = context.wrap_socket(keys[A].server.socket, server_side=True)
    url = keys[A].url.replace("http:", "https:").replace("127.0.0.1", "localhost")

    def verify(**more: str) -> str:
        configs = parse([{"issuer_url": A, "jwk_cert_url": url, **more}])
        claims, _ = asyncio.run(Verifier(Settings(jwt_configs=configs)).claims(of(A)))
        return claims["email"]

    with pytest.raises(errors.Problem) as stranger:
        verify()
    assert stranger.value.entry.code == errors.NO_KEYS
    assert verify(jwk_cert_ca_file=str(cert)) == "alice@example.com"


def test_replaced_certificates_of_an_issuer_take_effect_without_a_restart(
    keys: dict[str, KeyServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "STALE_AFTER", 0.0)
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    (old, key), (new, new_key) = self_signed(before), self_signed(after)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(old, key)
    keys[A].server.socket = context.wrap_socket(keys[A].server.socket, server_side=True)
    url = keys[A].url.replace("http:", "https:").replace("127.0.0.1", "localhost")
    file = tmp_path / "ca.crt"
    file.write_text(f"# For the authorit\u00e9 of yesterday.\n{old.read_text()}", encoding="latin-1")
    configs = parse([{"issuer_url": A, "jwk_cert_url": url, "jwk_cert_ca_file": str(file)}])
    verifier = Verifier(Settings(jwt_configs=configs))
    asyncio.run(verifier.claims(of(A)))
    context.load_cert_chain(new, new_key)
    keys[A].pairs = [key_pair("two")]
    with pytest.raises(errors.Problem):
        asyncio.run(verifier.claims(of(A, "two")))
    change(file, f"# For the authorit\u00e9 of today.\n{new.read_text()}")
    asyncio.run(verifier.claims(of(A, "two")))


def test_each_issuer_with_the_public_keys_requires_a_setting_that_says_who_is_allowed() -> None:
    public = {"issuer_url": A, "jwk_cert_url": PUBLIC_KEYS}
    mine = {"issuer_url": B, "jwk_cert_url": B, "audience": "fleet"}
    for configs in ([public], [mine, public], [{"issuer_url": A}, mine]):
        with pytest.raises(ConfigurationError, match="an account at the public issuer"):
            Guard(Settings(jwt_configs=parse(configs)))
        Guard(Settings(jwt_configs=parse(configs), jwt_audiences=("fleet",)))
        Guard(Settings(jwt_configs=parse(configs), any_caller=True))
    Guard(Settings(jwt_configs=parse([{**public, "audience": "fleet"}, mine])))
    with pytest.raises(ConfigurationError, match="no keys to verify them with"):
        Guard(Settings(jwk_cert_url="", jwt_configs=parse([{"issuer_url": A}])))


def test_issuers_in_a_configuration_file_of_the_original_are_applied(
    keys: dict[str, KeyServer], tmp_path: Path, database: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"""
server:
  jwt:
    enabled: true
    configs:
      - issuer_url: {A}
        jwk_cert_url: {keys[A].url}
        jwk_cert_file: ""
        header: Authorization
        audience: for-a
        identity_claim: email
        identity_claim_pattern: ""
        identity_header: ""
      - issuer_url: {B}
        jwk_cert_url: {keys[B].url}
        header: X-Token
        identity_claim: sub
        identity_claim_pattern: "^f:"
        identity_header: X-HyperFleet-Identity
"""
    )
    with Serving(f"--config={file}", "--host=127.0.0.1", "--database-url", database) as server:
        api = Api(server.url)
        named = {"X-HyperFleet-Identity": "f:gateway"}
        assert creator(api, of(A, aud="for-a"), **named) == "alice@example.com"
        refused(ask(api, of(A)), errors.INVALID_TOKEN, "Expected: for-a.")
        assert creator(api, of(B), "X-Token") == "f:1234:alice"
        assert creator(api, of(B), "X-Token", **named) == "f:gateway"
        refused(ask(api, of(B)), errors.INVALID_TOKEN, errors.BAD_ISSUER)
