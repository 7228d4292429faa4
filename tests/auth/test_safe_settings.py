"""Settings that would let in anybody are rejected at the start."""

import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Api
from issuer import key_pair
from process import Serving, run
from tokens import bearer

from hyperfleet import errors
from hyperfleet.auth import keys as keys_module
from hyperfleet.auth.guard import Guard
from hyperfleet.auth.tokens import Verifier
from hyperfleet.errors import ConfigurationError
from hyperfleet.settings.catalogue import PUBLIC_KEYS, Settings

pytestmark = pytest.mark.slow


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
