"""Which callers with a valid token are allowed: the access list, and OCM's access review."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests
from conftest import Api
from issuer import Answer, JsonServer, change, key_pair, key_set

from hyperfleet import errors
from hyperfleet.auth import remote, review
from hyperfleet.auth.access_list import matches, parse_rules
from hyperfleet.contract import document as contract
from hyperfleet.errors import ConfigurationError

pytestmark = pytest.mark.slow

Start = Callable[..., Api]

RULES = "- claim: email\n  pattern: ^.*@redhat\\.com$\n- claim: sub\n  pattern: ^service-\n"


@pytest.fixture
def start(service: Start, tmp_path: Path) -> Start:
    """Starts services that require tokens signed with one key."""
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(key_set(key_pair())))
    return lambda **settings: service(no_auth=False, jwk_cert_url="", jwk_cert_file=keys, **settings)


def bearer(**claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {key_pair().token(**claims)}"}


def forbidden(response: requests.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (403, errors.FORBIDDEN), response.text
    assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("claims", "let_in"),
    [
        ({"email": "ann@redhat.com"}, True),
        ({"email": "ann@example.com", "sub": "service-7"}, True),
        ({"email": "ann@example.com"}, False),
        ({"email": "ann@redhat.com.evil.example"}, False),
        ({"email": "ann@redhatxcom"}, False),
        # Regular expression engines differ in how "$" and "." treat line breaks.
        ({"email": "ann@redhat.com\n"}, False),
        ({"email": "evil\nann@redhat.com"}, False),
        ({"email": ["ann@redhat.com"]}, False),
        ({"email": None}, False),
        ({"email": "", "username": "ann@redhat.com"}, False),
    ],
)
def test_one_matching_rule_is_enough(claims: dict[str, Any], let_in: bool) -> None:
    assert matches(parse_rules(RULES), {"sub": "x", **claims}) == let_in


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "claim: email", "- email", "- claim: email", "- pattern: x", "a: [", "\0"),
        *("- claim: email\n  pattern: '['", "- claim: 7\n  pattern: x", "- claim: x\n  pattern: 7"),
        "- claim: email\n  pattern: x\n  unless: y",
        *(
            "- claim: email\n  pattern: a{99999999999}",
            f"- claim: email\n  pattern: '{'(' * 5000}'",
            "[" * 5000,
            "!!int ''",
            "- !!timestamp 2026-99-99",
        ),
    ],
)
def test_an_invalid_access_list_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_rules(text)


def test_the_access_list_decides_and_is_reread_when_it_changes(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "acl.yaml"
    file.write_text(RULES)
    api = start(acl_file=file)
    ann, bob = bearer(email="ann@redhat.com"), bearer(email="bob@example.com")
    assert api.get("/clusters", headers=ann).status_code == 200
    for method in ("get", "post", "head"):
        response = api.request(method, "/clusters", json={"name": "c", "spec": {}}, headers=bob)
        assert response.status_code == 403
    forbidden(api.get("/clusters", headers=bob))
    # It also applies to what no review is asked about.
    forbidden(api.get("/compatibility", headers=bob))
    assert api.get("/compatibility", headers=ann).status_code == 200
    # Callers without a valid token learn nothing about the list; public operations stay public.
    assert api.get("/clusters").status_code == 401
    assert api.get("/errors", headers=bob).status_code == 200
    change(file, "- claim: email\n  pattern: example.com\n")
    assert api.get("/clusters", headers=bob).status_code == 200
    forbidden(api.get("/clusters", headers=ann))
    with caplog.at_level(logging.ERROR):
        for broken in ("", "- claim: [", "- claim: email\n  pattern: '['\n"):
            change(file, broken)
            assert api.get("/clusters", headers=bob).status_code == 200
            forbidden(api.get("/clusters", headers=ann))
    assert sum("cannot be used" in record.message for record in caplog.records) == 3
    change(file, None)
    forbidden(api.get("/clusters", headers=ann))


def test_a_service_does_not_start_with_a_broken_access_list(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "acl.yaml"
    file.write_text("")
    with pytest.raises(ConfigurationError, match=r"acl\.yaml"):
        start(acl_file=file)


class Ocm(JsonServer):
    """What the access review needs of OCM: a token endpoint, and the review that requires its token."""

    def __init__(self) -> None:
        super().__init__(self.respond)
        self.allowed: set[tuple[str, str, str]] = set()
        self.tokens = 0
        self.broken: Answer | None = None
        self.life: Any = 900
        self.delay = 0.0
        # Reviews are answered while this is set.
        self.open = threading.Event()
        self.open.set()

    def respond(self, method: str, path: str, body: bytes, headers: Any) -> Answer:
        if self.broken:
            return self.broken
        if (method, path) == ("POST", "/token"):
            given = {name: value for name, (value,) in parse_qs(body.decode()).items()}
            if given != {
                "grant_type": "client_credentials",
                "client_id": "me",
                "client_secret": "s3cret",
            }:
                return 401, {}, b"{}"
            self.tokens += 1
            return self.json({"access_token": f"own-{self.tokens}", "expires_in": self.life})
        assert (method, path) == ("POST", "/api/authorizations/v1/access_review")
        if headers["Authorization"] != f"Bearer own-{self.tokens}":
            return 401, {}, b"{}"
        question = json.loads(body)
        assert question.keys() == {"account_username", "action", "resource_type"}
        time.sleep(self.delay)
        self.open.wait(30)
        return self.json({**question, "allowed": tuple(question.values()) in self.allowed})

    def json(self, value: Any) -> Answer:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    @property
    def questions(self) -> list[tuple[str, str, str]]:
        return [tuple(json.loads(body).values()) for _, path, body, _ in self.asked if "review" in path]


@pytest.fixture
def ocm() -> Iterator[Ocm]:
    with Ocm() as server:
        yield server


def reviews(ocm: Ocm) -> dict[str, Any]:
    """Returns the settings of a service whose callers this server reviews."""
    return {
        "enable_authz": True,
        "ocm_base_url": ocm.url + "/",
        "ocm_token_url": ocm.url + "/token",
        "ocm_client_id": "me",
        "ocm_client_secret": "s3cret",
    }


@pytest.fixture
def reviewed(start: Start, ocm: Ocm) -> Api:
    return start(**reviews(ocm))


def test_the_access_review_decides(reviewed: Api, ocm: Ocm) -> None:
    forbidden(reviewed.get("/clusters", headers=bearer()))
    ocm.allowed = {("bob", "get", "Cluster"), ("bob", "create", "Cluster")}
    bob = bearer(username="bob")
    assert reviewed.get("/clusters", headers=bob).status_code == 200
    created = reviewed.post("/clusters", json={"name": "c", "spec": {}}, headers=bob)
    assert created.status_code == 201, created.text
    forbidden(reviewed.delete(f"/clusters/{created.json()['id']}", headers=bob))
    forbidden(reviewed.get("/nodepools", headers=bob))
    assert ocm.questions == [
        ("alice", "get", "Cluster"),
        ("bob", "get", "Cluster"),
        ("bob", "create", "Cluster"),
        ("bob", "delete", "Cluster"),
        ("bob", "get", "NodePool"),
    ]
    # One token for all of them.
    assert ocm.tokens == 1


def test_every_operation_is_reviewed_by_its_action_and_resource_type() -> None:
    document = contract.load()
    reviews = contract.reviews(document)
    asked = {
        operation["operationId"]: reviews.get(operation["operationId"])
        for _, _, operation in contract.operations(document)
    }
    none = {name for name, what in asked.items() if what is None}
    assert none == {"getMetadata", "getVersionMetadata", "getCompatibility", "getErrors", "getErrorById"}
    assert asked["getClusters"] == asked["getClusterById"] == ("get", "Cluster")
    assert asked["postCluster"] == ("create", "Cluster")
    assert asked["patchClusterById"] == ("update", "Cluster")
    assert asked["deleteClusterById"] == asked["forceDeleteCluster"] == ("delete", "Cluster")
    assert asked["getNodePools"] == asked["getNodePoolsByClusterId"] == ("get", "NodePool")
    assert asked["createNodePool"] == ("create", "NodePool")
    assert asked["patchNodePoolById"] == ("update", "NodePool")
    assert asked["deleteNodePoolById"] == asked["forceDeleteNodePool"] == ("delete", "NodePool")
    assert asked["getClusterStatuses"] == ("get", "AdapterStatus")
    assert asked["postClusterStatuses"] == asked["postNodePoolStatuses"] == ("create", "AdapterStatus")
    assert asked["putClusterStatuses"] == ("update", "AdapterStatus")
    # Other paths to the same operations.
    for one, other in (
        ("getNodePool", "getNodePoolById"),
        ("patchNodePool", "patchNodePoolById"),
        ("deleteNodePool", "deleteNodePoolById"),
        ("forceDeleteNodePoolById", "forceDeleteNodePool"),
        ("getStatusesOfNodePool", "getNodePoolsStatuses"),
        ("postStatusesOfNodePool", "postNodePoolStatuses"),
        ("putStatusesOfNodePool", "putNodePoolStatuses"),
        ("getClusterAdapterStatuses", "getClusterStatuses"),
        ("getNodePoolAdapterStatuses", "getNodePoolsStatuses"),
        ("getAdapterStatusesOfNodePool", "getNodePoolsStatuses"),
    ):
        assert asked[one] == asked[other], one


def test_review_answers_are_cached_for_a_minute(
    reviewed: Api, ocm: Ocm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert review.REVIEW_FOR == 60
    monkeypatch.setattr(review, "REVIEW_FOR", 4)
    ocm.allowed = {("alice", "get", "Cluster")}
    for _ in range(5):
        assert reviewed.get("/clusters", headers=bearer()).status_code == 200
    assert len(ocm.questions) == 1
    ocm.allowed.clear()
    time.sleep(4.1)
    forbidden(reviewed.get("/clusters", headers=bearer()))


def test_the_number_of_cached_review_answers_is_bounded(
    reviewed: Api, ocm: Ocm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "MAX_REVIEWS", 3)
    for number in range(10):
        forbidden(reviewed.get("/clusters", headers=bearer(username=f"u{number}")))
    assert len(ocm.questions) == 10
    forbidden(reviewed.get("/clusters", headers=bearer(username="u9")))
    assert len(ocm.questions) == 10
    forbidden(reviewed.get("/clusters", headers=bearer(username="u0")))
    assert len(ocm.questions) == 11
    # Only the oldest was dropped.
    forbidden(reviewed.get("/clusters", headers=bearer(username="u9")))
    assert len(ocm.questions) == 11


def test_a_review_answer_that_replaces_an_expired_one_drops_no_other(
    reviewed: Api, ocm: Ocm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "MAX_REVIEWS", 2)
    for name, kept in (("old", 60), ("expired", 0), ("expired", 60), ("old", 60), ("expired", 60)):
        monkeypatch.setattr(review, "REVIEW_FOR", kept)
        forbidden(reviewed.get("/clusters", headers=bearer(username=name)))
    assert [name for name, _, _ in ocm.questions] == ["old", "expired", "expired"]


def test_concurrent_requests_of_one_caller_share_a_review_and_block_no_one(
    reviewed: Api, ocm: Ocm
) -> None:
    ocm.allowed = {("bob", "get", "Cluster"), ("carol", "get", "Cluster")}
    ocm.delay = 1.0

    def ask(name: str) -> tuple[int, float]:
        begun = time.monotonic()
        headers = bearer(username=name)
        status = requests.get(f"{reviewed.base}/clusters", headers=headers, timeout=30).status_code
        return status, time.monotonic() - begun

    with ThreadPoolExecutor(61) as threads:
        often = [threads.submit(ask, "bob") for _ in range(60)]
        while not ocm.questions:
            time.sleep(0.01)
        status, took = threads.submit(ask, "carol").result()
        assert status == 200
        assert took < 3
        assert {one.result()[0] for one in often} == {200}
    assert len(ocm.questions) == 2


def test_a_request_that_runs_out_of_time_does_not_end_a_review_that_another_one_waits_for(
    start: Start, ocm: Ocm
) -> None:
    api = start(request_timeout=1.5, **reviews(ocm))
    ocm.allowed = {("alice", "get", "Cluster")}
    ocm.open.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(Api(api.url).get, "/clusters", headers=bearer())
        while not ocm.questions:
            time.sleep(0.01)
        time.sleep(1)
        second = threads.submit(Api(api.url).get, "/clusters", headers=bearer())
        assert first.result().status_code == 503
        ocm.open.set()
        assert second.result().status_code == 200
    assert len(ocm.questions) == 1


@pytest.mark.parametrize("life", [float("nan"), 10**400, float("inf"), -1, True, "900", None])
def test_any_lifetime_of_the_services_own_token_is_accepted(reviewed: Api, ocm: Ocm, life: Any) -> None:
    ocm.allowed, ocm.life = {("alice", "get", "Cluster")}, life
    began = time.monotonic()
    assert reviewed.get("/clusters", headers=bearer()).status_code == 200
    for number in range(4):
        forbidden(reviewed.get("/clusters", headers=bearer(username=f"u{number}")))
    # However short it is, the token serves for a second.
    assert 1 <= ocm.tokens <= 1 + (time.monotonic() - began)


@pytest.mark.parametrize(
    "broken",
    [
        (500, {}, b""),
        (404, {}, b""),
        (302, {"Location": "/"}, b""),
        (200, {}, b"no JSON"),
        (200, {}, b"[]"),
        (200, {}, b"{}"),
        (200, {}, b'{"access_token": 7}'),
        (200, {}, b'{"access_token": "x"}'),
    ],
)
def test_requests_get_503_without_a_decision_from_the_review(
    reviewed: Api, ocm: Ocm, broken: Answer
) -> None:
    ocm.allowed = {("alice", "get", "Cluster")}
    ocm.broken = broken
    response = reviewed.get("/clusters", headers=bearer())
    assert (response.status_code, response.json()["code"]) == (503, errors.NO_REVIEW)
    assert int(response.headers["Retry-After"]) > 0
    assert ocm.url not in response.text
    # The failure is not cached: a request a moment later asks again.
    ocm.broken = None
    time.sleep(review.RETRY_EVERY)
    assert reviewed.get("/clusters", headers=bearer()).status_code == 200


def test_requests_do_not_queue_for_a_review_that_does_not_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        secret = {"ocm_client_id": "me", "ocm_client_secret": "s3cret"}
        api = start(enable_authz=True, ocm_base_url=url, ocm_token_url=f"{url}/token", **secret)

        def ask(number: int) -> int:
            headers = bearer(username=f"u{number}")
            return requests.get(f"{api.base}/clusters", headers=headers, timeout=30).status_code

        begun = time.monotonic()
        with ThreadPoolExecutor(40) as threads:
            assert set(threads.map(ask, range(40))) == {503}
        # One after another, they would wait for 40 s, or until the service gives up after 10 s.
        assert time.monotonic() - begun < 8


@pytest.mark.parametrize("allowed", [b"false", b"null", b"1", b'"true"', b"[true]", b"{}"])
def test_only_true_allows_a_request(reviewed: Api, ocm: Ocm, allowed: bytes) -> None:
    ocm.broken = (200, {}, b'{"access_token": "x", "expires_in": 60, "allowed": ' + allowed + b"}")
    forbidden(reviewed.get("/clusters", headers=bearer()))


def test_requests_get_503_when_the_review_is_unreachable(reviewed: Api, ocm: Ocm) -> None:
    ocm.allowed = {("alice", "get", "Cluster")}
    assert reviewed.get("/clusters", headers=bearer()).status_code == 200
    ocm.stop()
    response = reviewed.get("/nodepools", headers=bearer())
    assert (response.status_code, response.json()["code"]) == (503, errors.NO_REVIEW)


def test_the_services_own_token_is_renewed(reviewed: Api, ocm: Ocm) -> None:
    ocm.allowed = {("alice", "get", "Cluster"), ("alice", "get", "NodePool")}
    assert reviewed.get("/clusters", headers=bearer()).status_code == 200
    # The token is revoked before it expires.
    ocm.tokens += 1
    assert reviewed.get("/nodepools", headers=bearer()).status_code == 200
    assert ocm.tokens == 3


def test_a_caller_without_an_account_name_is_forbidden(reviewed: Api, ocm: Ocm) -> None:
    forbidden(reviewed.get("/clusters", headers=bearer(preferred_username=None, sub=None)))
    assert ocm.questions == []
    # The subject is its name if no claim says more.
    ocm.allowed = {("f:1234:alice", "get", "Cluster")}
    assert reviewed.get("/clusters", headers=bearer(preferred_username=None)).status_code == 200


def test_rejected_tokens_and_public_operations_are_not_reviewed(reviewed: Api, ocm: Ocm) -> None:
    assert reviewed.get("/clusters", headers=bearer(exp=1)).status_code == 401
    assert reviewed.get("/clusters").status_code == 401
    assert reviewed.get("/errors").status_code == 200
    assert ocm.asked == []


def test_the_client_secret_is_not_logged(
    reviewed: Api, ocm: Ocm, caplog: pytest.LogCaptureFixture
) -> None:
    ocm.broken = (500, {}, b"")
    with caplog.at_level(logging.DEBUG):
        assert reviewed.get("/clusters", headers=bearer()).status_code == 503
    assert any("access review" in record.getMessage() for record in caplog.records)
    assert not any("s3cret" in record.getMessage() for record in caplog.records)
