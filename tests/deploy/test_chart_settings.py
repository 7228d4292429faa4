"""The settings that the chart mounts, read by the real service; who gets in, and what is rejected."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from conftest import Api
from issuer import key_pair, key_set, self_signed
from process import CLEAN, Serving, free_port, run, run_here
from psycopg.conninfo import conninfo_to_dict
from rendered import CASES, ROOT, Mounted, case, helm, needs_helm, one, settings, template

from hyperfleet.settings.catalogue import PUBLIC_KEYS

pytestmark = [pytest.mark.tools, needs_helm]

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PROVIDER = ROOT / "tests" / "providers" / "gcp.yaml"
EXTERNAL = "database.external.enabled=true,database.external.secretName=fleet-database"
ACL = "- {claim: email, pattern: '^a@example.com$'}\n"


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key and its certificate."""
    cert, key = self_signed(tmp_path_factory.mktemp("tls"))
    return {"tls.crt": cert.read_text(), "tls.key": key.read_text()}


Mount = Callable[..., Mounted]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="hyperfleet-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def mount(database: str, folder: Path, pair: dict[str, str]) -> Mount:
    """Mounts a container of a release, on this test's database."""
    parts = conninfo_to_dict(database)
    secret = {
        **{f"db.{key}": str(parts.get(key) or "5432") for key in ("host", "port", "user")},
        "db.name": str(parts["dbname"]),
        "db.password": str(parts.get("password") or 'with "quotes"'),
    }

    def mounted(manifests: Any, name: str = "api", kind: str = "Deployment") -> Mounted:
        ending = "-migrate" if kind == "Job" else ""
        own = {
            "fleet-database": {**secret, "dbname": secret["db.name"]},
            "hyperfleet-api-database": secret,
            "hyperfleet-api-postgresql": secret,
            "fleet-tls": {**pair, "ca.crt": pair["tls.crt"]},
            "fleet-acl": {"acl.yaml": ACL},
            "fleet-schema": {"openapi.yaml": PROVIDER.read_text()},
            "fleet-config": {"config.yaml": "server: {jwt: {configs: []}}\nany-caller: true\n"},
            "fleet-keys": {"jwks.json": json.dumps(key_set(key_pair()))},
            "database-ca": {"ca.crt": pair["tls.crt"]},
        }
        spec = one(manifests, kind, ending)["spec"]["template"]["spec"]
        return Mounted(manifests, spec, name, folder / name, own)

    return mounted


def plain(manifests: Any) -> tuple[Any, ...]:
    """Manifests without references to secrets in the environment, which are not the chart's."""
    found = json.loads(json.dumps(manifests))
    for each in found:
        spec = each.get("spec", {}).get("template", {}).get("spec", {})
        for held in [*spec.get("initContainers", []), *spec.get("containers", [])]:
            held["env"] = [one for one in held.get("env", []) if "value" in one]
    return tuple(found)


# One of the cases names another host for its database; the others use the test's database.
STARTED = sorted(set(CASES) - {"nothing-values"})


@pytest.mark.parametrize("name", STARTED)
def test_the_service_would_start_with_the_mounted_files(name: str, mount: Mount) -> None:
    api = mount(plain(case(name)))
    direct = [text for text in api.arguments[1:] if not text.startswith("--db-")]
    done = run_here("config", "--check", "--config", api.config, *direct, env=api.env)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "The service would start."), (
        done.stdout
    )
    assert api.arguments[0] == "serve"


def test_without_a_secret_the_settings_name_the_database() -> None:
    found = settings(case("nothing-values"))
    assert {key: value for key, value in found.items() if key.startswith("db_")} == {
        "db_host": "database.example",
        "db_name": "fleet",
        "db_user": "fleet",
        "db_sslmode": "verify-full",
    }


def test_what_the_settings_say_about_the_database_is_not_taken_from_the_secret() -> None:
    manifests = template(
        *("--set", "database.external.enabled=true,database.external.secretName=fleet-database"),
        *("--set", "settings.db-password-file=/vault/password,settings.db-host=database.example"),
    )
    found = settings(manifests)
    assert (found["db_host"], found["db_password_file"]) == ("database.example", "/vault/password")
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    (volume,) = (each for each in pod["volumes"] if each["name"] == "database")
    assert [each["path"] for each in volume["secret"]["items"]] == ["db.port", "db.name", "db.user"]


def in_force(api: Mounted) -> dict[str, Any]:
    """Returns the settings of the service with the mounted files."""
    done = run_here("config", "--output", "json", "--config", api.config, env=api.env)
    assert done.returncode == 0, done.stdout
    return {name: each["value"] for name, each in json.loads(done.stdout).items()}


def test_numbers_booleans_and_lists_keep_their_types(mount: Mount) -> None:
    manifests = template(
        *("--set", "settings.max-body-size=2097152", "--set", "settings.require-if-match=true"),
        *("--set", "settings.no_auth=true", "--set", "settings.access-log=0.25"),
        *("--set", "settings.required-adapters-cluster={dns,validation}"),
        *("--set", r"settings.cors-origins=https://a.example\,https://b.example"),
        *("--set", "settings.db-max-connections=100000"),
    )
    written = settings(manifests)
    assert written["max_body_size"] == 2097152
    assert "e+" not in one(manifests, "ConfigMap")["data"]["config.yaml"]
    found = in_force(mount(manifests))
    assert found["max_body_size"] == 2097152
    assert found["db_max_connections"] == 100000
    assert found["require_if_match"] is True
    assert found["no_auth"] is True
    assert found["access_log"] == 0.25
    assert found["required_adapters_cluster"] == ["dns", "validation"]
    assert found["cors_origins"] == ["https://a.example", "https://b.example"]
    assert found["host"] == "0.0.0.0"


def test_values_of_the_originals_chart_mean_the_same(mount: Mount) -> None:
    manifests = case("original-values")
    found = in_force(mount(manifests))
    assert (found["port"], found["health_port"], found["metrics_port"]) == (8000, 8080, 9090)
    assert (found["read_timeout"], found["write_timeout"], found["stuck_after"]) == (5, 90, 600)
    (issuer,) = found["jwt_configs"]
    assert (issuer["issuer_url"], issuer["jwk_cert_url"]) == (
        "https://idp.example",
        "https://idp.example/certs",
    )
    assert (issuer["audience"], issuer["identity_claim"]) == ("fleet", "sub")
    # The issuer itself says who is allowed.
    assert found["jwt_audiences"] == []
    assert (found["db_sslmode"], found["db_max_connections"]) == ("require", 50)
    # The secret says where the database is.
    assert found["db_name"] != "ignored"
    assert (found["log_level"], found["log_masked"]) == ("warning", ["password", "secret"])
    assert found["required_adapters_cluster"] == ["validation", "dns"]
    assert found["openapi_schema_path"].endswith("/etc/hyperfleet/schemas/openapi.yaml")
    env = mount(manifests).env
    assert (env["HYPERFLEET_TRACING_ENABLED"], env["OTEL_TRACES_SAMPLER_ARG"]) == ("true", "0.5")
    assert one(manifests, "ServiceMonitor")["spec"]["endpoints"][0]["interval"] == "15s"


def test_the_single_issuer_of_older_values_takes_effect(mount: Mount) -> None:
    jwt = "config.server.jwt"
    manifests = template(
        *(
            "--set",
            f"{jwt}.issuer_url=https://idp.example,{jwt}.audience=fleet,{jwt}.identity_claim=sub",
        ),
        *("--set", "config.server.jwk.cert_url=https://idp.example/certs"),
    )
    found = in_force(mount(manifests))
    assert found["jwt_issuers"] == ["https://idp.example"]
    assert (found["jwt_audiences"], found["identity_claims"]) == (["fleet"], ["sub"])
    assert found["jwk_cert_url"] == "https://idp.example/certs"


def test_entities_are_written_only_if_there_are_any() -> None:
    assert "entities" not in settings(case("default-values"))
    given = "config.entities[0].kind=Channel,config.entities[0].plural=channels"
    assert settings(template("--set", given))["entities"] == [{"kind": "Channel", "plural": "channels"}]


def test_the_job_migrates_an_empty_database_and_the_pod_then_serves(mount: Mount, database: str) -> None:
    manifests = template(
        *("--set", "database.external.enabled=true,database.external.secretName=fleet-database"),
        *("--set", "settings.no-auth=true,settings.shutdown-delay=0"),
        *("--set-file", f"provider.schema={PROVIDER}"),
    )
    taken = run("migrate", "--rollback", "99", "--yes", "--database-url", database)
    assert taken.returncode == 0, taken.stdout
    job = mount(manifests, "migrate", "Job")
    done = run(*job.arguments, "--config", job.config, env=job.env)
    assert done.returncode == 0, done.stdout
    assert "applied" in done.stdout
    api = mount(manifests)
    ended = [*api.arguments[1:], "--host=127.0.0.1"]
    with Serving("--config", api.config, *ended, env=api.env) as serving:
        assert requests.get(f"{serving.health}/readyz", timeout=10).status_code == 200
        refused = Api(serving.url).post("/clusters", json={"name": "a", "spec": {"odd": 1}})
        assert refused.status_code == 400


@contextmanager
def pgbouncer(beside: Mounted, database: str) -> Iterator[int]:
    """Runs the command of the sidecar on a free port; PgBouncer refuses to run as root."""
    port = free_port()
    user = None
    if os.geteuid() == 0:
        host = Path(str(conninfo_to_dict(database)["host"]))
        user = host.owner() if host.is_absolute() else pwd.getpwnam("nobody").pw_name
        for path in [beside.folder, *beside.folder.rglob("*")]:
            shutil.chown(path, user)
    command = [text.replace("6432", str(port)) for text in beside.command]
    env = {**CLEAN, "PATH": f"{CLEAN['PATH']}:{Path(str(PGBOUNCER)).parent}"}
    process = subprocess.Popen(command, env=env, user=user, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.skipif(not PGBOUNCER, reason="pgbouncer is not installed")
def test_the_service_reaches_its_database_through_the_pgbouncer_sidecar(
    mount: Mount, database: str
) -> None:
    manifests = template(
        "--set", "pgbouncer.enabled=true,settings.no-auth=true,settings.shutdown-delay=0"
    )
    api = mount(manifests)
    with pgbouncer(mount(manifests, "pgbouncer"), database) as port:
        arguments = [text.replace("6432", str(port)) for text in api.arguments[1:]]
        with Serving("--config", api.config, "--host=127.0.0.1", *arguments, env=api.env) as serving:
            assert "through a pooler" in serving.output
            assert Api(serving.url).cluster()["name"] == "c1"


@pytest.mark.parametrize(
    ("given", "words", "flags"),
    [
        ("auth.audiences=null", "Nothing limits who gets in", ""),
        (
            "auth.audiences=null,settings.jwt-issuers={https://a.example}",
            "Nothing limits who gets in",
            "--jwt-issuers=https://a.example",
        ),
        (
            "settings.jwk-cert-url=",
            "there are no keys to verify them with",
            "--jwk-cert-url= --jwt-audiences=a",
        ),
        ("auth.enableAuthz=true", "enable-authz needs a client", "--enable-authz"),
        (
            "auth.enableAuthz=true,auth.enableJwt=false",
            "enable-authz needs verified callers",
            "--enable-authz --enable-jwt=false",
        ),
    ],
)
def test_helm_rejects_the_authentication_settings_that_the_service_rejects(
    given: str, words: str, flags: str
) -> None:
    refused = helm("template", "x", "./chart", "--set", given)
    assert refused.returncode != 0
    assert words in refused.stderr
    assert run_here("config", "--check", *flags.split()).returncode != 0


@pytest.mark.parametrize(
    ("given", "audiences"),
    [
        ("settings.any-caller=true", None),
        ("settings.jwt-audiences={fleet}", ["fleet"]),
        ("settings.acl-file=/etc/acl/acl.yaml", None),
        ("auth.jwksUrl=https://idp.example/certs,auth.audiences=null", None),
        ("extraEnv[0].name=HYPERFLEET_JWT_AUDIENCES,extraEnv[0].value=fleet", None),
        (
            "auth.audiences=null,extraEnv[0].name=HYPERFLEET_JWT_AUDIENCES,extraEnv[0].value=fleet",
            None,
        ),
        (
            "auth.enableAuthz=true,settings.ocm-client-id-file=/a/id,settings.ocm-client-secret-file=/a/s",
            None,
        ),
        # Keys alone do not say who is allowed.
        ("auth.jwksUrl=https://idp.example/certs", ["hyperfleet-api"]),
        (
            "settings.jwk-cert-url=,settings.jwk-cert-file=/etc/keys/jwks.json",
            ["hyperfleet-api"],
        ),
    ],
)
def test_only_settings_that_say_who_is_allowed_replace_the_default_audience(
    given: str, audiences: list[str] | None
) -> None:
    assert settings(template("--set", given)).get("jwt_audiences") == audiences


def test_the_default_values_require_tokens_for_the_services_own_audience() -> None:
    found = settings(case("default-values"))
    assert found["jwt_audiences"] == ["hyperfleet-api"]
    assert not {"no_auth", "enable_jwt", "any_caller"} & found.keys()


def test_a_mounted_key_file_and_the_default_audience_decide_who_gets_in(mount: Mount) -> None:
    manifests = template(
        *("--set", "settings.jwk-cert-url=,settings.jwk-cert-file=/etc/keys/jwks.json"),
        *("--set", "settings.shutdown-delay=0,settings.host=127.0.0.1"),
        *("--set", "extraVolumes[0].name=keys,extraVolumes[0].configMap.name=fleet-keys"),
        *("--set", "extraVolumeMounts[0].name=keys,extraVolumeMounts[0].mountPath=/etc/keys"),
    )
    api = mount(manifests)
    with Serving("--config", api.config, *api.arguments[1:], env=api.env) as serving:
        for audience, code in (("hyperfleet-api", 200), ("another", 401)):
            bearer = {"Authorization": f"Bearer {key_pair().token(aud=audience)}"}
            assert Api(serving.url).get("/clusters", headers=bearer).status_code == code
        assert Api(serving.url).get("/clusters").status_code == 401


@pytest.mark.parametrize("place", ["config.server.jwt.configs", "settings.jwt-configs"])
def test_an_issuer_without_an_audience_keeps_the_default_audience(place: str) -> None:
    given = f"{place}[0].issuer_url=https://a.example"
    assert settings(template("--set", given))["jwt_audiences"] == ["hyperfleet-api"]
    # Its own audience replaces the default, but not for another issuer.
    given += f",{place}[0].audience=fleet"
    assert "jwt_audiences" not in settings(template("--set", given))
    given += f",{place}[1].issuer_url=https://b.example"
    assert settings(template("--set", given))["jwt_audiences"] == ["hyperfleet-api"]


OWN = {"issuer_url": "https://a.example", "jwk_cert_url": "https://a.example/certs"}
PUBLIC = {"issuer_url": "https://b.example"}


@pytest.mark.parametrize(
    ("configs", "starts"),
    [
        ([OWN], True),
        ([PUBLIC], False),
        ([OWN, PUBLIC], False),
        ([{**OWN, "audience": "fleet"}, PUBLIC], False),
        ([OWN, {**PUBLIC, "audience": "fleet"}], True),
        ([{**OWN, "jwk_cert_url": PUBLIC_KEYS}], False),
        ([{**OWN, "jwk_cert_url": PUBLIC_KEYS, "audience": "fleet"}], True),
    ],
)
def test_helm_accepts_and_rejects_the_same_issuers_as_the_service(
    tmp_path: Path, database: str, configs: list[dict[str, str]], starts: bool
) -> None:
    file = tmp_path / "values.json"
    values = {"auth": {"audiences": None}, "config": {"server": {"jwt": {"configs": configs}}}}
    file.write_text(json.dumps(values))
    made = helm("template", "x", "./chart", "--values", str(file))
    assert (made.returncode == 0) == starts, made.stderr
    assert starts or "Nothing limits who gets in" in made.stderr
    flags = [f"--jwt-configs={json.dumps(configs)}", f"--database-url={database}"]
    checked = run_here("config", "--check", *flags)
    assert (checked.returncode == 0) == starts, checked.stdout


def test_an_unknown_member_of_an_issuer_is_rejected_by_the_schema() -> None:
    given = "config.server.jwt.configs[0].issuer_url=x,config.server.jwt.configs[0].audiance=fleet"
    refused = helm("template", "x", "./chart", "--set", given)
    assert refused.returncode != 0
    assert "audiance" in refused.stderr


@pytest.mark.parametrize(
    "given",
    [
        "settings.db-password=x",
        "settings.ocm_client_secret=x",
        "settings.database-url=postgresql://a:b@c/d",
        "settings.read-database-url=postgresql://a:b@c/d",
    ],
)
def test_secrets_among_the_settings_are_rejected(given: str) -> None:
    refused = helm("template", "x", "./chart", "--set", given)
    assert "contains a secret, but settings are stored in a ConfigMap" in refused.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("database.external.secretName=x", "set database.external.enabled=true"),
        ("database.external.enabled=true", "No database is configured"),
        ("settings.port=9000", "set by ports.api"),
        (
            "pgbouncer.enabled=true,database.external.enabled=true,settings.database-url-file=/a",
            "the database's host must come from database.external.secretName",
        ),
        ("config.health.port=9000", "set by ports.health"),
        ("ports.api=8080", "must differ"),
        ("settings.database-url-file=/a", "Two databases are configured: by database-url-file"),
        ("settings.db-host=a", "Two databases are configured: by db-host"),
        (
            "extraEnv[0].name=HYPERFLEET_DATABASE_URL",
            "Two databases are configured: by HYPERFLEET_DATABASE_URL",
        ),
        (f"{EXTERNAL},settings.database-url-file=/a", "by database.external.secretName"),
        ("validationSchema.enabled=true", "nothing would be validated"),
        ("autoscaling.enabled=true,autoscaling.minReplicas=20", "must not be less than"),
        (
            "autoscaling.enabled=true,autoscaling.targetCPUUtilizationPercentage=null",
            "needs autoscaling.targetCPUUtilizationPercentage or",
        ),
        ("settings.shutdown-timeout=2m", "must exceed 130"),
        ("config.health.shutdown_timeout=1m30s", "must exceed 100"),
    ],
)
def test_values_that_contradict_each_other_are_rejected(given: str, words: str) -> None:
    assert words in helm("template", "x", "./chart", "--set", given).stderr


def test_the_built_in_database_gets_a_random_password() -> None:
    def password() -> str:
        done = helm("template", "x", "./chart", "--show-only", "templates/postgresql.yaml")
        (secret,) = (each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Secret")
        return str(secret["stringData"]["db.password"])

    first = password()
    assert len(first) == 32
    assert password() != first
