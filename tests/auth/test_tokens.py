"""Bearer tokens: which are accepted, which are rejected, and what the responses say."""

import asyncio
import base64
import hashlib
import hmac
import json
import random
import string
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Api
from issuer import KeyPair, KeyServer, good, key_pair, key_set
from jose import jwt
from jose.utils import base64url_encode
from tokens import Start, ask, bearer, closed, forge, keys, new, refused, segment, start, strict

from hyperfleet import errors
from hyperfleet.auth import tokens as tokens_module
from hyperfleet.auth.tokens import LEEWAY
from hyperfleet.contract import document as contract
from hyperfleet.settings.catalogue import Settings

pytestmark = pytest.mark.slow

__all__ = ["closed", "keys", "start", "strict"]


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


def test_only_the_newest_accepted_tokens_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "MAX_VERIFIED", 3)
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(key_set(key_pair())))
    verifier = tokens_module.Verifier(Settings(jwk_cert_url="", jwk_cert_file=file))
    for number in range(5):
        token = key_pair().token(jti=str(number))
        for _ in range(2):
            claims, _ = asyncio.run(verifier.claims(token))
            assert claims["jti"] == str(number)
    assert [one.claims["jti"] for one in verifier.verified.values()] == ["2", "3", "4"]


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
