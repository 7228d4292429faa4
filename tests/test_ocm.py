"""The `ocm` command line works against the service, with a token from `hyperfleet token`.

The test of `ocm` itself needs it on the PATH. What `ocm` sends is tested in any case.
"""

import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jose.jwt
import pytest
import requests
from issuer import self_signed
from process import CLEAN, HYPERFLEET, Serving

pytestmark = pytest.mark.slow

CLUSTERS = "/api/hyperfleet/v1/clusters"


def token(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [HYPERFLEET, "token", "--dir", str(folder), *arguments],
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def server(database: str, folder: Path) -> Iterator[Serving]:
    token(folder)
    keys = folder / "jwks.json"
    with Serving(
        "--host=127.0.0.1", "--database-url", database, "--jwk-cert-url=", f"--jwk-cert-file={keys}"
    ) as serving:
        yield serving


@pytest.fixture
def ocm() -> str:
    found = shutil.which("ocm")
    if found is None:
        pytest.skip("the ocm command line is not on the PATH")
    return found


def test_ocm_logs_in_and_works_on_clusters(
    ocm: str, server: Serving, folder: Path, tmp_path: Path
) -> None:
    def run(*arguments: str, body: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ocm, *arguments],
            env={**CLEAN, "HOME": str(tmp_path), "OCM_CONFIG": str(tmp_path / "ocm.json")},
            input=None if body is None else json.dumps(body),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def answer(*arguments: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        done = run(*arguments, body=body)
        assert done.returncode == 0, done.stdout + done.stderr
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    assert run("login", f"--token={token(folder)}", f"--url={server.url}").returncode == 0
    assert answer("get", CLUSTERS)["total"] == 0
    made = answer("post", CLUSTERS, body={"name": "by-ocm", "spec": {"region": "a"}})
    assert made["created_by"] == "developer@hyperfleet.local"
    assert [item["name"] for item in answer("get", CLUSTERS)["items"]] == ["by-ocm"]
    found = answer("get", CLUSTERS, "--parameter", "search=name = 'by-ocm'")
    assert found["items"][0]["id"] == made["id"]
    changed = answer("patch", made["href"], body={"spec": {"region": "b"}})
    assert (changed["spec"], changed["generation"]) == ({"region": "b"}, 2)
    deleted = answer("delete", made["href"])
    assert deleted["deleted_by"] == "developer@hyperfleet.local"

    # An error is shown unchanged on stderr, and the command fails.
    wrong = run("post", CLUSTERS, body={"name": "Not A Name", "spec": {}})
    assert wrong.returncode != 0
    problem = json.loads(wrong.stderr)
    assert (problem["kind"], problem["code"]) == ("Error", "HYPERFLEET-VAL-003")
    assert problem["reason"]
    assert problem["details"][0]["field"] == "name"

    # A token of another key is refused in the same way.
    stranger = token(tmp_path / "stranger")
    assert run("login", f"--token={stranger}", f"--url={server.url}").returncode == 0
    refused = run("get", CLUSTERS)
    assert refused.returncode != 0
    assert json.loads(refused.stderr)["code"] == "HYPERFLEET-AUT-002"


def test_requests_like_those_of_the_ocm_sdk_get_json(server: Serving, folder: Path) -> None:
    """ocm accepts only application/json, also for errors."""
    session = requests.Session()
    session.headers = {"Accept": "application/json", "Authorization": f"Bearer {token(folder)}"}  # type: ignore[assignment]
    as_json = {"Content-Type": "application/json"}
    url = server.url + CLUSTERS
    made = session.post(url, data=b'{"name": "a", "spec": {}}', headers=as_json, timeout=30)
    for response, status in (
        (made, 201),
        (session.get(url, timeout=30), 200),
        (session.patch(server.url + made.json()["href"], data=b'{"spec": {}}', headers=as_json), 200),
        (session.delete(server.url + made.json()["href"], timeout=30), 202),
        (session.post(url, data=b"{}", headers=as_json, timeout=30), 400),
        (session.get(url + "/nothing", timeout=30), 404),
        (session.put(url, data=b"{}", headers=as_json, timeout=30), 405),
        (session.get(url, headers={"Authorization": "Bearer x"}, timeout=30), 401),
    ):
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"] == "application/json"
        if status >= 400:
            assert response.json()["kind"] == "Error"
            assert response.json()["reason"]


def test_the_key_pair_is_created_once_and_is_private(folder: Path) -> None:
    first = token(folder)
    key, keys = (folder / "private.pem").read_bytes(), (folder / "jwks.json").read_bytes()
    second = token(folder, "--email", "ann@example.com")
    assert (folder / "private.pem").read_bytes() == key
    assert (folder / "jwks.json").read_bytes() == keys
    assert (folder / "token").read_text().strip() == second != first
    assert b'"d"' not in keys
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_options_determine_the_claims_of_a_token(folder: Path) -> None:
    made = token(
        folder,
        *("--email=ann@example.com", "--username=ann", "--issuer=https://me", "--audience=fleet"),
        *("--lifetime=30m", "--claim=typ=ID", "--claim=groups=[1]", "--claim=team=red team"),
    )
    claims = jose.jwt.decode(made, json.loads((folder / "jwks.json").read_text()), audience="fleet")
    assert claims["exp"] - claims["iat"] == 1800
    assert (claims["iss"], claims["aud"]) == ("https://me", "fleet")
    assert (claims["email"], claims["username"], claims["sub"]) == ("ann@example.com", "ann", "ann")
    assert (claims["typ"], claims["groups"], claims["team"]) == ("ID", [1], "red team")


@pytest.mark.parametrize("wrong", ["--lifetime=3x", "--lifetime=", "--claim=x", "--claim==x"])
def test_an_invalid_option_is_named_in_the_error(folder: Path, wrong: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        token(folder, wrong)
    assert failed.value.returncode == 2
    assert wrong.split("=", maxsplit=1)[0] in failed.value.stderr


@pytest.mark.parametrize("kind", ["none", "ec"])
def test_a_broken_key_fails_without_a_traceback(folder: Path, kind: str) -> None:
    folder.mkdir()
    if kind == "ec":
        _, other = self_signed(folder)
        other.rename(folder / "private.pem")
    else:
        (folder / "private.pem").write_text("no key")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        token(folder)
    assert failed.value.returncode == 1
    assert "Traceback" not in failed.value.stderr
    assert kind == "none" or "private.pem holds no RSA key" in failed.value.stderr


def test_an_expired_token_is_refused(server: Serving, folder: Path) -> None:
    ended = token(folder, "--lifetime=-1h")
    response = requests.get(
        server.url + CLUSTERS, headers={"Authorization": f"Bearer {ended}"}, timeout=30
    )
    assert response.status_code == 401
    assert response.json()["code"] == "HYPERFLEET-AUT-003"
