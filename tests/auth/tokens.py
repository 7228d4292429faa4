"""Services that require tokens, requests with them, and rejections."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from conftest import Api, Service, migrated
from issuer import KeyServer, key_pair
from jose.utils import base64url_encode
from pytest_postgresql.executors import NoopExecutor

from hyperfleet import errors

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
        # Makes sure that keys are fetched, whichever tests this process runs.
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


# Details that are more specific than the general message.
MORE_SPECIFIC = {
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
        assert problem["detail"] in {code, *MORE_SPECIFIC.get(code, ())}, response.text
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
