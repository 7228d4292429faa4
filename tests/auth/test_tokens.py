"""Bearer tokens: which are accepted, which are rejected, and what the responses say."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import random
import socket
import ssl
import string
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from conftest import Api, Service, migrated
from issuer import KeyPair, KeyServer, change, good, key_pair, key_set, self_signed
from jose import jwt
from jose.utils import base64url_encode
from process import Serving, run
from pytest_postgresql.executors import NoopExecutor

from hyperfleet import errors
from hyperfleet.auth import keys as keys_module
from hyperfleet.auth import remote
from hyperfleet.auth.guard import Guard
from hyperfleet.auth.tokens import LEEWAY, Verifier
from hyperfleet.contract import document as contract
from hyperfleet.errors import ConfigurationError
from hyperfleet.observe.log import _Context
from hyperfleet.settings.catalogue import PUBLIC_KEYS, Settings

pytestmark = pytest.mark.slow

Start = Callable[..., Api]


@pytest.fixture
def keys() -> Iterator[KeyServer]:
    with KeyServer(key_pair()) as server:
        yield server


@pytest.fixture
def start(service: Start, keys: KeyServer) -> Start:
    """Starts services that require tokens, by default signed with a key of the key server."""

    def start(**settings: Any) -> Api:
        return service(**{"no_auth": False, "jwk_cert_url": keys.url, **settings})

    return start


@contextmanager
def shared(postgres: NoopExecutor, name: str, **settings: Any) -> Iterator[Api]:
    """A service that requires tokens, shared by tests that leave it as it is."""
    with migrated(postgres, name) as conninfo, KeyServer(key_pair()) as keys:
        one = Service(conninfo, no_auth=False, jwk_cert_url=keys.url, **settings)
        api = Api(one.url)
        # Fetches the keys, whichever tests this process runs.
        ask(api, key_pair().token())
        yield api
        assert {path for _, path, _, _ in keys.asked} == {"/"}
        one.stop()


@pytest.fixture(scope="module")
def closed(postgres: NoopExecutor) -> Iterator[Api]:
    with shared(postgres, "closed") as api:
        yield api


@pytest.fixture(scope="module")
def strict(postgres: NoopExecutor) -> Iterator[Api]:
    issuers = ("https://issuer.example",)
    with shared(postgres, "strict", jwt_issuers=issuers, jwt_audiences=("fleet", "fleets")) as api:
        yield api


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def ask(api: Api, token: str, **headers: str) -> requests.Response:
    return api.get("/clusters", headers={**bearer(token), **headers})


# Details that are more specific than the code.
CLOSER = {
    errors.BAD_TYPE: {"Impersonation tokens are not accepted."},
    errors.BAD_ALGORITHM: {"The token's key is not for its algorithm."},
    errors.UNKNOWN_KEY: {"The token does not say which key it is signed with."},
    errors.BAD_AUDIENCE: {f"{errors.BAD_AUDIENCE} Expected: fleet, fleets."},
    errors.MALFORMED_TOKEN: {
        "The Authorization header has no token.",
        "The token has more than 16384 characters.",
        *(f"The token's {name} is missing or not a time." for name in ("exp", "nbf", "iat")),
    },
}


def refused(response: requests.Response, code: str, token: str = "") -> dict[str, Any]:
    """Expects a 401 as in RFC 6750 that gives the reason and does not repeat the token."""
    problem = response.json()
    if code == errors.BAD_AUDIENCE:
        # It says which audiences are accepted.
        assert problem["detail"] == f"{code} Expected: fleet, fleets."
    if code not in errors.CATALOGUE:
        # The detail says what is wrong with the token.
        assert problem["detail"] in {code, *CLOSER.get(code, ())}, response.text
        code = errors.INVALID_TOKEN
    assert (response.status_code, problem["code"]) == (401, code), response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    challenge = response.headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer ")
    assert ('error="invalid_token"' in challenge) == (code != errors.NO_TOKEN)
    assert ("error_description=" in challenge) == (code != errors.NO_TOKEN)
    for part in filter(None, token.split(".")):
        assert len(part) < 8 or part not in response.text + str(response.headers)
    return problem


def new() -> dict[str, Any]:
    return {"name": f"c{uuid.uuid4().hex}", "spec": {}}


def segment(value: Any) -> str:
    return base64url_encode(json.dumps(value).encode()).decode()


def forge(header: Any, claims: Any, signature: bytes = b"x") -> str:
    return f"{segment(header)}.{segment(claims)}.{base64url_encode(signature).decode()}"


def test_every_operation_requires_a_token_except_the_public_ones(closed: Api) -> None:
    public = {"getMetadata", "getVersionMetadata", "getErrors", "getErrorById"}
    seen = set()
    for path, method, operation in contract.operations(contract.load()):
        url = "/" + path.replace("{error_id}", errors.NOT_FOUND).replace("{", "").replace("}", "")
        response = closed.request(method, url, json={} if method != "get" else None)
        if operation["operationId"] in public:
            seen.add(operation["operationId"])
            assert method == "get"
            assert response.status_code == 200
        else:
            assert {"401", "403"} <= operation["responses"].keys()
            refused(response, errors.NO_TOKEN)
    assert seen == public
    for path in ("//openapi", "/openapi", "/openapi.html", "//openapi-ui/"):
        assert closed.get(path).status_code == 200
    assert (
        closed.get("//openapi").json()["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    )


def test_other_spellings_of_a_path_do_not_bypass_authentication(closed: Api) -> None:
    for path in (
        *("/clusters/", "/clusters//", "//clusters", "/./clusters", "/errors/../clusters"),
        *("/%63lusters", "/clusters;x", "/Clusters", "/clusters%2f", "/errors/%2e%2e/clusters"),
    ):
        request = requests.Request("GET", "http://x").prepare()
        request.url = closed.base + path
        assert closed.send(request, allow_redirects=False).status_code in (401, 404), path
    assert closed.head("/clusters").status_code == 401


def test_without_authentication_no_token_is_required(api: Api) -> None:
    assert api.get("/clusters").status_code == 200
    assert api.get("/clusters", headers=bearer("nonsense")).status_code == 200


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "ES256", "ES384"])
def test_a_valid_token_is_accepted(start: Start, keys: KeyServer, algorithm: str) -> None:
    pair = key_pair(f"key-{algorithm}", algorithm)
    keys.pairs.append(pair)
    api = start()
    assert ask(api, pair.token()).status_code == 200
    created = api.post("/clusters", json=new(), headers=bearer(pair.token()))
    assert created.status_code == 201, created.text
    assert created.json()["created_by"] == "alice@example.com"
    assert api.get("/clusters", headers={"Authorization": f"bearer {pair.token()}"}).status_code == 200


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (errors.EXPIRED_TOKEN, {"exp": -31}),
        (errors.EXPIRED_TOKEN, {"exp": -(10**9)}),
        (errors.EARLY_TOKEN, {"nbf": 90}),
        (errors.EARLY_TOKEN, {"iat": 90}),
        (errors.BAD_TYPE, {"typ": "ID"}),
        (errors.BAD_TYPE, {"typ": "Refresh"}),
        (errors.BAD_TYPE, {"typ": "Offline"}),
        (errors.BAD_TYPE, {"typ": ["Bearer"]}),
        (errors.BAD_TYPE, {"impersonated": True}),
        (errors.MALFORMED_TOKEN, {"exp": None}),
        (errors.MALFORMED_TOKEN, {"exp": "tomorrow"}),
        (errors.MALFORMED_TOKEN, {"exp": True}),
        (errors.MALFORMED_TOKEN, {"exp": float("inf")}),
        (errors.MALFORMED_TOKEN, {"exp": float("nan")}),
        (errors.MALFORMED_TOKEN, {"nbf": {}}),
        (errors.MALFORMED_TOKEN, {"iat": "x"}),
        (errors.BAD_ISSUER, {"iss": "https://other.example"}),
        (errors.BAD_ISSUER, {"iss": None}),
        (errors.BAD_ISSUER, {"iss": ["https://issuer.example"]}),
        (errors.BAD_AUDIENCE, {"aud": "others"}),
        (errors.BAD_AUDIENCE, {"aud": None}),
        (errors.BAD_AUDIENCE, {"aud": ["others", 1, None]}),
        (errors.BAD_AUDIENCE, {"aud": {"fleet": 1}}),
    ],
)
def test_a_token_with_an_invalid_claim_is_rejected(
    strict: Api, code: str, changes: dict[str, Any]
) -> None:
    for name in changes.keys() & {"exp", "nbf", "iat"}:
        if type(changes[name]) is int:
            changes = {**changes, name: int(time.time()) + changes[name]}
    assert ask(strict, key_pair().token()).status_code == 200
    token = key_pair().token(**changes)
    refused(ask(strict, token), code, token)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": -25},
        {"nbf": 25},
        {"iat": 25},
        {"iat": None},
        {"typ": None},
        {"typ": "bearer"},
        {"impersonated": False},
        {"aud": ["others", "fleet"]},
        {"exp": 0.5},
    ],
)
def test_a_token_within_the_leeway_or_without_optional_claims_is_accepted(
    strict: Api, changes: dict[str, Any]
) -> None:
    for name in changes.keys() & {"exp", "nbf", "iat"}:
        if changes[name] is not None:
            changes = {**changes, name: time.time() + changes[name]}
    assert ask(strict, key_pair().token(**changes)).status_code == 200


def test_an_accepted_token_is_rejected_once_it_has_expired(strict: Api) -> None:
    token = key_pair().token(exp=time.time() - LEEWAY + 1.5)
    assert [ask(strict, token).status_code for _ in range(3)] == [200] * 3
    time.sleep(1.6)
    refused(ask(strict, token), errors.EXPIRED_TOKEN, token)


def test_blanks_around_a_token_are_ignored_and_other_characters_are_not(closed: Api) -> None:
    token = key_pair().token()
    for value in (f"bearer  {token} ", f"Bearer\t{token}", f"Bearer\t {token}"):
        assert closed.get("/clusters", headers={"Authorization": value}).status_code == 200
    # No-break space and next line.
    for end in ("\xa0", "\x85"):
        refused(ask(closed, token + end), errors.MALFORMED_TOKEN, token)


def test_a_missing_or_malformed_token_is_rejected(closed: Api) -> None:
    refused(closed.get("/clusters"), errors.NO_TOKEN)
    refused(closed.get("/clusters", headers={"Authorization": "Basic dTpw"}), errors.NO_TOKEN)
    refused(closed.get("/clusters", headers={"Authorization": "Bearer"}), errors.MALFORMED_TOKEN)
    refused(closed.get("/clusters?access_token=" + key_pair().token()), errors.NO_TOKEN)
    header, claims, signature = key_pair().token().split(".")
    deep = base64url_encode(b"[" * 9000).decode()
    latin = base64url_encode(bytes(range(200))).decode()
    digits = base64url_encode(b'{"alg":"RS256","kid":' + b"9" * 9000 + b"}").decode()
    for token in (
        *("x", "a.b", "..", "a.b.c", "a.b.c.d.e", header),
        *(f"{header}.{claims}", f"{header}.{claims}.", f".{claims}.{signature}"),
        *(f"{header}.{claims}.{signature}{end}" for end in ("=", "!", " x", ".", "é")),
        *(f"{header} .{claims}.{signature}", f"{header}.{claims}.é"),
        *(f"{deep}.{claims}.{signature}", f"{header}.{deep}.{signature}"),
        *(f"{digits}.{claims}.{signature}", f"{latin}.{claims}.{signature}"),
        *(forge([], {}), forge({}, []), forge("x", "y"), forge(None, None)),
        forge({"alg": "RS256", "kid": "one", "crit": ["x"]}, good()),
    ):
        response = closed.get("/clusters", headers={"Authorization": b"Bearer " + token.encode()})
        refused(response, errors.MALFORMED_TOKEN)


def test_a_request_with_two_tokens_is_rejected(closed: Api) -> None:
    tokens = (key_pair().token(), key_pair().token(email="eve@example.com"))
    status, problem = closed.answer(*(("Authorization", f"Bearer {token}") for token in tokens))
    assert status == 401
    assert problem["code"] == errors.INVALID_TOKEN


def test_a_wrong_signature_is_rejected(closed: Api) -> None:
    imposter = KeyPair("one")
    refused(ask(closed, imposter.token()), errors.BAD_SIGNATURE)
    header, _, signature = key_pair().token().split(".")
    claims = segment({**good(), "email": "eve@example.com"})
    refused(ask(closed, f"{header}.{claims}.{signature}"), errors.BAD_SIGNATURE)
    for forged in (b"\0", b"\0" * 256, b"\xff" * 256):
        refused(ask(closed, forge({"alg": "RS256", "kid": "one"}, good(), forged)), errors.BAD_SIGNATURE)


@pytest.mark.parametrize(
    "algorithm",
    [
        *("none", "None", "NONE", "", None, ["RS256"], {}, 1),
        *("HS256", "HS384", "HS512", "PS256", "ES512", "EdDSA", "RSA1_5", "dir", "A256KW"),
    ],
)
def test_unsupported_algorithms_are_rejected(closed: Api, algorithm: Any) -> None:
    header = {"alg": algorithm, "kid": "one", "typ": "JWT"}
    refused(ask(closed, forge(header, good())), errors.BAD_ALGORITHM)
    empty = f"{segment(header)}.{segment(good())}."
    refused(ask(closed, empty), errors.MALFORMED_TOKEN)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_a_public_key_is_not_accepted_as_an_hmac_secret(closed: Api, digest: str) -> None:
    """The classic confusion: the token is signed with HMAC, using the public key as the secret."""
    pair = key_pair()
    document = json.dumps(key_set(pair))
    der = base64.b64decode("".join(pair.public.splitlines()[1:-1]))
    for secret in (
        pair.public,
        pair.public.strip(),
        document,
        json.dumps(pair.jwk()),
        pair.jwk()["n"],
        "",
    ):
        for algorithm in ("HS" + digest[3:], "RS" + digest[3:]):
            head = f"{segment({'alg': algorithm, 'kid': 'one'})}.{segment(good())}"
            for raw in (secret.encode(), der):
                mac = hmac.new(raw, head.encode(), digest).digest()
                token = f"{head}.{base64url_encode(mac).decode()}"
                response = ask(closed, token)
                assert response.status_code == 401
                assert response.json()["code"] == errors.INVALID_TOKEN


def test_a_key_is_used_only_with_its_own_algorithm(start: Start, keys: KeyServer) -> None:
    curve = key_pair("curve", "ES256")
    narrow = key_pair("narrow")
    keys.pairs += [curve, narrow]
    api = start()
    keys_alone = {"keys": [narrow.jwk(alg="RS512"), curve.jwk()]}
    keys.broken = (200, {}, json.dumps(keys_alone).encode())
    assert ask(api, curve.token()).status_code == 200
    for kid, algorithm in (
        ("curve", "RS256"),
        ("curve", "ES384"),
        ("narrow", "RS256"),
        ("narrow", "ES256"),
    ):
        refused(ask(api, forge({"alg": algorithm, "kid": kid}, good())), errors.BAD_ALGORITHM)
    assert ask(api, jwt.encode(good(), narrow.private, "RS512", {"kid": "narrow"})).status_code == 200
    refused(
        ask(api, jwt.encode(good(), narrow.private, "RS256", {"kid": "narrow"})), errors.BAD_ALGORITHM
    )


@pytest.mark.parametrize(
    "kid",
    [
        *("two", "", None, 1, ["one"], {"one": 1}, "ONE", "one ", "one\0", "a" * 5000),
        *("../../etc/passwd", "/etc/passwd", "/dev/null", "file:///etc/passwd"),
        *("http://127.0.0.1:9/keys", "https://evil.example/jwks"),
        *("' OR '1'='1", "one;id", "$(id)", "%00"),
    ],
)
def test_an_unknown_key_id_is_rejected_whatever_it_contains(closed: Api, kid: Any) -> None:
    refused(ask(closed, forge({"alg": "RS256", "kid": kid}, good())), errors.UNKNOWN_KEY)
    refused(ask(closed, jwt.encode(good(), "", "HS256", {"kid": kid})), errors.BAD_ALGORITHM)


def test_a_token_cannot_choose_its_keys(closed: Api) -> None:
    imposter = KeyPair("one")
    with KeyServer(imposter) as evil:
        for headers in (
            {"jku": evil.url},
            {"x5u": evil.url},
            {"jwk": imposter.jwk()},
            {"jku": evil.url, "x5u": evil.url, "jwk": imposter.jwk(), "x5c": [imposter.public]},
        ):
            refused(ask(closed, imposter.token(headers)), errors.BAD_SIGNATURE)
            refused(ask(closed, imposter.token({**headers, "kid": "evil"})), errors.UNKNOWN_KEY)
            # In a valid token they do no harm.
            assert ask(closed, key_pair().token(headers)).status_code == 200
        assert evil.asked == []


@pytest.mark.parametrize(
    ("typ", "status"),
    [
        *(("JWT", 200), ("at+jwt", 200), ("application/at+JWT", 200)),
        *(("logout+jwt", 401), ("dpop+jwt", 401), (7, 401)),
    ],
)
def test_jwts_of_other_types_are_not_accepted_as_access_tokens(
    closed: Api, typ: Any, status: int
) -> None:
    assert ask(closed, key_pair().token({"typ": typ})).status_code == status


def test_a_huge_token_is_rejected(start: Start, closed: Api) -> None:
    response = ask(closed, "a" * 1_000_000)
    assert response.status_code == 431
    assert response.json()["code"] == errors.HEADERS_TOO_LARGE
    assert "aaaa" not in response.text
    refused(ask(closed, "a" * 17_000), errors.MALFORMED_TOKEN)
    roomy = start(max_header_size=4_000_000)
    big = key_pair().token(filler="x" * 1_000_000)
    refused(ask(roomy, big), errors.MALFORMED_TOKEN)
    assert ask(roomy, key_pair().token(filler="x" * 10_000)).status_code == 200
    assert ask(closed, key_pair().token()).status_code == 200


def test_random_mutations_of_a_valid_token_are_rejected(closed: Api) -> None:
    """1,000 mutations: characters changed, dropped, added or rotated, parts exchanged."""
    choice = random.Random(7)
    good_token = key_pair().token()
    other = key_pair().token(email="eve@example.com", sub="eve")
    alphabet = string.ascii_letters + string.digits + "-_.=+/~! \t%\"'{}"
    tried = set()
    while len(tried) < 1000:
        characters = list(good_token)
        for _ in range(choice.choice((1, 1, 1, 2, 3, 10))):
            at = choice.randrange(len(characters))
            match choice.randrange(6):
                case 0:
                    characters[at] = choice.choice(alphabet)
                case 1:
                    del characters[at]
                case 2:
                    characters.insert(at, choice.choice(alphabet))
                case 3:
                    characters = characters[at:] + characters[:at]
                case 4:
                    characters[at:] = list(other[at:])
                case 5:
                    # The last character alone: some of its bits are not part of the signature.
                    characters[-1] = choice.choice(alphabet)
        token = "".join(characters).strip()
        if token not in (good_token, other) and token not in tried:
            tried.add(token)
    for token in tried:
        response = ask(closed, token)
        assert response.status_code == 401, token
        assert response.json()["code"].startswith("HYPERFLEET-AUT-")
    assert ask(closed, good_token).status_code == 200


def test_every_bit_of_the_last_character_of_a_signature_is_checked(closed: Api) -> None:
    # Its last four bits are not part of the signature; lenient decoders drop them.
    good_token = key_pair().token()
    for character in set(string.ascii_letters + string.digits + "-_") - {good_token[-1]}:
        assert ask(closed, good_token[:-1] + character).status_code == 401


def test_a_new_key_is_accepted_beside_the_old_one(start: Start, keys: KeyServer) -> None:
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


def test_a_new_key_works_at_once_even_during_a_fetch_of_keys_without_it(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RENEW_AFTER", 0.2)
    monkeypatch.setattr(keys_module, "RETRY_EVERY", 0.1)
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


def test_keys_in_use_are_renewed_before_they_are_stale(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RENEW_AFTER", 0.2)
    monkeypatch.setattr(keys_module, "RETRY_EVERY", 0.1)
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


def test_a_failed_fetch_does_not_extend_the_life_of_a_withdrawn_key(
    start: Start, keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RENEW_AFTER", 0.2)
    monkeypatch.setattr(keys_module, "RETRY_EVERY", 0.1)
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


def test_requests_get_503_until_keys_could_be_fetched(
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
    assert set(usable) == {("one", "RS256"), ("curve", "ES256")}
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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"jwk_cert_url": ""}, "no keys to verify them with"),
        ({"jwk_cert_url": "http://sso.example/certs"}, "must be https"),
        ({"jwk_cert_url": "http://localhost.evil.example/certs"}, "must be https"),
        ({"jwk_cert_url": "http://127.0.0.1@evil.example/certs"}, "must be https"),
        ({"jwk_cert_url": "file:///etc/passwd"}, "the scheme file is not https"),
        ({"jwk_cert_url": "certs"}, "neither http nor https"),
        ({"jwk_cert_url": "https:///certs"}, "names no host"),
        ({"jwt_issuers": ("https://a=http://b",)}, "must be https"),
        ({"jwt_issuers": ("https://a=/no/such/file",)}, "No such file"),
        ({"jwk_cert_url": "", "jwt_issuers": ("https://a",)}, "no keys to verify them with"),
        ({"enable_authz": True}, "--ocm-client-id"),
        ({"enable_authz": True, "ocm_base_url": "http://ocm.example"}, "must be https"),
        ({"enable_authz": True, "ocm_token_url": "http://sso.example"}, "must be https"),
    ],
)
def test_unsafe_settings_are_rejected(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Guard(Settings(**settings))


def test_the_default_keys_are_those_of_red_hat_sso() -> None:
    url = "https://sso.redhat.com/auth/realms/redhat-external/protocol/openid-connect/certs"
    assert Settings().jwk_cert_url == url
    assert isinstance(Verifier(Settings()).common[0], keys_module.KeyServer)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"jwt_issuers": ("https://sso.example",)},
        {"jwt_issuers": ("https://a=https://a.example/keys", "https://sso.example")},
        {"jwk_cert_url": "", "jwt_issuers": (f"https://sso.example={PUBLIC_KEYS}",)},
        {"jwk_cert_url": PUBLIC_KEYS.replace("sso.redhat", "SSO.RedHat")},
        {"jwk_cert_url": PUBLIC_KEYS + "/"},
        {"jwk_cert_url": PUBLIC_KEYS.replace(".com/", ".com:443/") + "?x=y#z"},
        {"jwk_cert_url": PUBLIC_KEYS.replace(".com/", ".com.//").replace("certs", "./c%65rts")},
    ],
)
def test_the_public_keys_require_a_setting_that_says_who_is_allowed(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="an account at the public issuer could write"):
        Guard(Settings(**settings))
    acl = tmp_path / "acl.yaml"
    acl.write_text("- {claim: email, pattern: '@example[.]com$'}")
    for who in (
        {"any_caller": True},
        {"jwt_audiences": ("fleet",)},
        {"acl_file": acl},
        {"enable_authz": True, "ocm_client_id": "me", "ocm_client_secret": "secret"},
        {"jwk_cert_url": "https://idp.example/keys", "jwt_issuers": ()},
        {"jwk_cert_url": "https://idp.example" + urlsplit(PUBLIC_KEYS).path, "jwt_issuers": ()},
    ):
        Guard(Settings(**{**settings, **who}))
    # Keys that are used for no token do no harm.
    Guard(Settings(jwt_issuers=("https://a=https://a.example/keys",)))


def test_serve_does_not_start_without_a_setting_that_says_who_is_allowed(database: str) -> None:
    done = run("serve", "--database-url", database)
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    for flag in ("--jwt-audiences", "--acl-file", "--enable-authz", "--any-caller"):
        assert flag in said


def test_make_run_accepts_local_tokens_while_the_public_keys_are_unreachable(
    root: Path, tmp_path: Path, database: str
) -> None:
    recipe = (root / "Makefile").read_text().split("\nrun: ")[1].split("\n\n")[0]
    words = recipe.replace("$(DATA_DIR)", str(tmp_path)).replace("\\\n", " ").split("\n")
    token, serve = (line.split("$(BIN)/hyperfleet ")[1] for line in words[1:])
    assert run(*token.split()[:3]).returncode == 0
    arguments = serve.removesuffix("$(ARGS)").split()[1:]
    assert "--jwk-cert-url" not in serve, "the default is the public issuer's"
    mine = bearer((tmp_path / "auth" / "token").read_text().strip())
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        urls = [f"http://127.0.0.1:{one.getsockname()[1]}/certs" for one in (silent, gone)]
        gone.close()
        for url in urls:
            given = (*arguments, f"--jwk-cert-url={url}", "--database-url", database)
            with Serving(*given) as server:
                assert server.url.startswith("http://127.0.0.1:")
                api = Api(server.url)
                start = time.monotonic()
                for name in ("a", "b", "c"):
                    made = api.post("/clusters", json={"name": name, "spec": {}}, headers=mine)
                    assert made.status_code == 201
                    assert api.delete(f"/clusters/{made.json()['id']}", headers=mine).status_code == 202
                assert time.monotonic() - start < 2
                # A token signed with another key cannot be judged.
                other = api.get("/clusters", headers=bearer(key_pair().token()))
                assert (other.status_code, other.json()["code"]) == (503, errors.NO_KEYS)


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


def test_each_rejection_is_in_the_catalogue_of_errors(closed: Api) -> None:
    known = {entry["code"]: entry["status"] for entry in closed.get("/errors?size=1000").json()["items"]}
    assert {known[f"HYPERFLEET-AUT-{number:03}"] for number in (1, 2, 3, 100)} == {401}
    assert known[errors.FORBIDDEN] == 403
    assert known[errors.NO_KEYS] == known[errors.NO_REVIEW] == 503


def test_the_hmac_test_computes_the_right_digest() -> None:
    # Makes sure that the HMAC test is rejected for the right reason: with a secret, HS256 is this.
    token = jwt.encode({"a": 1}, "secret", "HS256")
    head, _, signature = token.rpartition(".")
    mac = hmac.new(b"secret", head.encode(), hashlib.sha256).digest()
    assert base64url_encode(mac).decode() == signature
