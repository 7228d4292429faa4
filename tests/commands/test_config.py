"""`hyperfleet config` shows and checks settings, and accepts the original's names for them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from process import Serving, run, run_here
from psycopg.pq import Conninfo

from hyperfleet.commands import options


def shown(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    ended = run_here("config", "--output=json", *arguments, env=env)
    assert ended.returncode == 0, ended.stdout
    return json.loads(ended.stdout[ended.stdout.index("{\n") :])


def test_each_setting_is_shown_with_its_source_and_without_secrets(tmp_path: Path) -> None:
    file, secret = tmp_path / "config.yaml", tmp_path / "password"
    file.write_text("port: 1\nlog_level: debug\nread_timeout: 7\n")
    secret.write_text("sesame\n")
    arguments = [f"--config={file}", "--port=3", f"--db-password-file={secret}", "--db-host=x"]
    env = {
        "HYPERFLEET_PORT": "2",
        "HYPERFLEET_LOG_LEVEL": "error",
        "HYPERFLEET_OCM_CLIENT_SECRET": "sesame",
    }
    found = shown(*arguments, env=env)
    assert found["port"] == {"value": 3, "from": "--port"}
    assert found["log_level"] == {"value": "error", "from": "HYPERFLEET_LOG_LEVEL"}
    assert found["read_timeout"] == {"value": 7, "from": str(file)}
    assert found["write_timeout"] == {"value": 30, "from": "default"}
    assert found["db_password"] == {"value": "***", "from": "--db-password-file"}
    assert found["ocm_client_secret"] == {"value": "***", "from": "HYPERFLEET_OCM_CLIENT_SECRET"}
    assert shown()["db_password"] == {"value": "", "from": "default"}
    # An empty value leaves it to the file, which is then where the value comes from.
    both = shown("--db-password=", f"--db-password-file={secret}")["db_password"]
    assert both == {"value": "***", "from": "--db-password-file"}
    table = run_here("config", *arguments, env=env).stdout
    assert "sesame" not in table
    assert [line.split() for line in table.splitlines() if line.startswith("port ")] == [
        ["port", "--port", "3"]
    ]
    whole = yaml.safe_load(run_here("config", "--output=yaml", *arguments, env=env).stdout)
    assert whole == found
    url = shown("--database-url=postgresql://u:sesame@h:1/d?sslmode=require")["database_url"]["value"]
    assert "sesame" not in url
    assert "host=h" in url
    # Newer versions of libpq have these.
    keywords = {option.keyword.decode() for option in Conninfo.get_defaults()}
    newer = {"oauth_client_secret", "scram_client_key"} & keywords
    for arguments in (
        *([f"--database-url=host=h {name}=sesame"] for name in newer),
        ["--database-url=postgresql://u:x@h:1/d?sslpassword=sesame&sslkey=k"],
        ["--database-url=host=h options='-c a.b=sesame'"],
        ["--database-url=host=h", "--read-database-url=host=h password=sesame"],
        ["--jwk-cert-url=https://user:sesame@keys/certs"],
        ["--jwt-issuers=https://one=https://user:sesame@keys/certs"],
        ["--ocm-base-url=https://:sesame@ocm"],
        ["--jwk-cert-url=https://user:open@sesame@keys/certs"],
    ):
        assert "sesame" not in str(shown(*arguments)), arguments


NEWEST = """
server:
  host: 0.0.0.0
  port: 8001
  openapi_schema_path: schema.yaml
  timeouts: {read: 5s, write: 1m30s}
  jwt:
    enabled: true
    configs:
      - {issuer_url: "https://one", jwk_cert_url: "https://one/keys", audience: a, identity_claim: email}
      - issuer_url: https://two
        jwk_cert_url: ""
        jwk_cert_file: keys.json
        header: X-Token
        audience: b
        identity_claim: sub
        identity_claim_pattern: "^system:"
        identity_header: X-HyperFleet-Identity
  tenant:
    enabled: true
    system_header: X-HyperFleet-System
    dimensions:
      - {header: X-HyperFleet-Org, key: org, required: true}
      - {header: X-HyperFleet-Project, key: project, required: false}
database:
  dialect: postgres
  host: db
  port: 5433
  name: n
  username: u
  password: p
  ssl: {mode: verify-full, root_cert_file: ca.crt}
  pool: {max_connections: 50, max_idle_connections: 10, conn_max_lifetime: 5m, request_timeout: 30s}
logging:
  level: warn
  format: json
  output: stdout
  masking: {enabled: true, headers: [Cookie], fields: [password, pin]}
tracing: {enabled: false, service_name: hyperfleet-api}
metrics: {host: localhost, port: 9090, tls: {enabled: false}}
health: {host: localhost, port: 8080, shutdown_timeout: 25s, db_ping_timeout: 2s}
"""


def test_a_configuration_file_of_the_newest_original_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(NEWEST)
    # Put where the original looks for it.
    monkeypatch.setattr(options, "PLACE", file)
    found = {name: one["value"] for name, one in shown().items() if one["from"] == str(file)}
    assert found == {
        "host": "0.0.0.0",
        "port": 8001,
        "openapi_schema_path": "schema.yaml",
        "read_timeout": 5,
        "write_timeout": 90,
        "enable_jwt": True,
        "jwt_configs": [
            {
                "issuer_url": "https://one",
                "jwk_cert_url": "https://one/keys",
                "header": "Authorization",
                "audience": "a",
                "identity_claim": "email",
            },
            {
                "issuer_url": "https://two",
                "jwk_cert_file": "keys.json",
                "header": "X-Token",
                "audience": "b",
                "identity_claim": "sub",
                "identity_claim_pattern": "^system:",
                "identity_header": "X-HyperFleet-Identity",
            },
        ],
        "tenant_enabled": True,
        "tenant_system_header": "X-HyperFleet-System",
        "tenant_dimensions": [
            {"header": "X-HyperFleet-Org", "key": "org", "required": True},
            {"header": "X-HyperFleet-Project", "key": "project", "required": False},
        ],
        "db_host": "db",
        "db_port": "5433",
        "db_name": "n",
        "db_user": "u",
        "db_password": "***",
        "db_sslmode": "verify-full",
        "db_rootcert": "ca.crt",
        "db_max_connections": 50,
        "statement_timeout": 30,
        "log_level": "warning",
        "log_format": "json",
        "log_masked": ["password", "pin"],
        "tracing_enabled": "false",
        "metrics_host": "localhost",
        "metrics_port": 9090,
        "enable_metrics_https": False,
        "health_host": "localhost",
        "health_port": 8080,
        "shutdown_timeout": 25,
    }
    file.write_text("server: {prot: 1}")
    refused = run_here("config")
    assert refused.returncode == 2
    assert "server_prot" in refused.stdout


ONE = {"issuer_url": "https://one"}


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        (["https://one"], "issuer 1 is not a mapping"),
        ([ONE, {"audience": "a"}], "issuer 2 has no issuer_url"),
        ([ONE, ONE], "issuer 2: this issuer_url is already named"),
        # A mistyped name would let in callers that it was meant to keep out.
        ([{**ONE, "audiance": "a"}], "audiance is not a member of an issuer; did you mean audience?"),
        ([{**ONE, "audience": ["a"]}], "audience must be a string"),
        ([{**ONE, "header": "Cookie"}], "header cannot be 'Cookie'"),
        ([{**ONE, "header": "X Token"}], "header cannot be 'X Token'"),
        ([{**ONE, "identity_header": "Authorization"}], "identity_header cannot be"),
        (
            [{**ONE, "identity_header": "X-Request-ID"}],
            "cannot be X-Request-ID, which requests use for",
        ),
        ([{**ONE, "header": "X-A", "identity_header": "x-a"}], "a header that carries tokens"),
        ([{**ONE, "jwk_cert_ca_file": "ca.crt"}], "jwk_cert_ca_file needs a jwk_cert_url"),
        ("{", "this is not JSON"),
        ("1", "this is not a list of issuers"),
    ],
)
def test_an_invalid_issuer_is_rejected_with_a_message(tmp_path: Path, configs: Any, says: str) -> None:
    text = configs if isinstance(configs, str) else json.dumps(configs)
    refused = [run_here("config", f"--jwt-configs={text}")]
    refused.append(run_here("config", env={"HYPERFLEET_SERVER_JWT_CONFIGS": text}))
    if not isinstance(configs, str):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"server": {"jwt": {"configs": configs}}}))
        refused.append(run_here("config", f"--config={file}"))
    for one in refused:
        assert one.returncode == 2
        assert says in " ".join(one.stdout.split())


def test_issuers_named_by_two_settings_are_rejected(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("jwt_issuers: [a=b]\nserver: {jwt: {configs: [{issuer_url: c}]}}")
    assert "both name issuers" in run_here("config", f"--config={file}").stdout
    given = json.dumps([ONE])
    refused = run_here("config", "--jwt-issuers=a", env={"HYPERFLEET_JWT_CONFIGS": given})
    said = " ".join(refused.stdout.split())
    assert "--jwt-configs (HYPERFLEET_JWT_CONFIGS) and --jwt-issuers both name issuers" in said
    # One issuer may send its tokens in two headers.
    configs = [ONE, {**ONE, "header": "X-A", "identity_claim_pattern": " a "}]
    found = shown(f"--jwt-configs={json.dumps(configs)}")["jwt_configs"]["value"]
    assert [one["header"] for one in found] == ["Authorization", "X-A"]
    assert found[1]["identity_claim_pattern"] == " a "
    # An empty list is no contradiction.
    file.write_text("server: {jwt: {configs: []}}")
    assert shown(f"--config={file}", "--jwt-issuers=a")["jwt_issuers"]["value"] == ["a"]


def test_issuers_are_shown_without_the_passwords_in_their_urls() -> None:
    given = json.dumps([{**ONE, "jwk_cert_url": "https://user:sesame@keys/certs", "audience": None}])
    one = {**ONE, "jwk_cert_url": "https://user:***@keys/certs", "header": "Authorization"}
    assert shown(f"--jwt-configs={given}")["jwt_configs"] == {"value": [one], "from": "--jwt-configs"}
    table = run_here("config", f"--jwt-configs={given}").stdout
    assert "sesame" not in table
    assert json.dumps(one) in table


def test_a_check_reports_an_issuer_with_an_invalid_pattern_file_or_url(tmp_path: Path) -> None:
    for more, says in (
        (
            {"identity_claim_pattern": "["},
            "identity_claim_pattern of https://one: '[' is not a supported regular",
        ),
        (
            {"identity_claim_pattern": "^[[:alpha:]]+$"},
            "back-references, look-around and [:classes:] cannot be used",
        ),
        # With these, some names would take longer to match than others.
        (
            {"identity_claim_pattern": r"^(a+)\1$"},
            "back-references, look-around and [:classes:] cannot be used",
        ),
        (
            {"identity_claim_pattern": "^(?=a+)a"},
            "back-references, look-around and [:classes:] cannot be used",
        ),
        ({"jwk_cert_ca_file": "/no/such.crt"}, "/no/such.crt: No such file"),
        ({"jwk_cert_ca_file": __file__}, "test_config.py: "),
        ({"jwk_cert_file": "/no/such.json"}, "/no/such.json"),
        (
            {"jwk_cert_url": "http://keys.example"},
            "--jwt-configs: the URL of keys.example must be https",
        ),
    ):
        given = json.dumps([{**ONE, "jwk_cert_url": "https://one/keys", **more}])
        refused = run_here("config", "--check", f"--jwt-configs={given}", f"--data-dir={tmp_path}")
        assert refused.returncode == 2
        assert says in " ".join(refused.stdout.split()), refused.stdout


def test_text_settings_in_a_file_are_taken_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "db: {host: h, user: 0123, name: yes, port: 0o17}\nlogging: {level: WARN}\nenable_jwt: no\n"
        "read_timeout: ~\nmetrics: {deletion_stuck_threshold: 30m, reconciliation_stuck_threshold: 10m}"
    )
    refused = run_here("config", f"--config={file}")
    assert "0o17" in refused.stdout or "--db-port" in refused.stdout
    file.write_text(file.read_text().replace("0o17", "0543"))
    answer = run_here("config", f"--config={file}", "--output=json")
    found = json.loads(answer.stdout[answer.stdout.index("{") :])
    values = {name: one["value"] for name, one in found.items() if one["from"] == str(file)}
    assert values == {
        **{"db_host": "h", "db_user": "0123", "db_name": "yes", "db_port": "0543"},
        **{"log_level": "warning", "enable_jwt": False, "stuck_after": 1800},
    }


def test_the_source_shown_is_the_variable_that_takes_effect() -> None:
    for empty in ("", "tcp://10.0.0.1:80"):
        env = {"HYPERFLEET_PORT": empty, "HYPERFLEET_SERVER_PORT": "7"}
        assert shown(env=env)["port"] == {"value": 7, "from": "HYPERFLEET_SERVER_PORT"}


# All variables of the newest original, with a valid value for each.
VARIABLES = {
    "HYPERFLEET_SERVER_HOSTNAME": "x",
    "HYPERFLEET_SERVER_HOST": "127.0.0.1",
    "HYPERFLEET_SERVER_PORT": "8002",
    "HYPERFLEET_SERVER_OPENAPI_SCHEMA_PATH": "x",
    "HYPERFLEET_SERVER_TIMEOUTS_READ": "5s",
    "HYPERFLEET_SERVER_TIMEOUTS_WRITE": "30s",
    "HYPERFLEET_SERVER_TLS_ENABLED": "false",
    "HYPERFLEET_SERVER_JWT_ENABLED": "false",
    "HYPERFLEET_DATABASE_DIALECT": "postgres",
    "HYPERFLEET_DATABASE_HOST": "db",
    "HYPERFLEET_DATABASE_PORT": "5433",
    "HYPERFLEET_DATABASE_NAME": "n",
    "HYPERFLEET_DATABASE_USERNAME": "u",
    "HYPERFLEET_DATABASE_PASSWORD": "p",
    "HYPERFLEET_DATABASE_DEBUG": "true",
    "HYPERFLEET_DATABASE_SSL_MODE": "disable",
    "HYPERFLEET_DATABASE_SSL_ROOT_CERT_FILE": "x",
    "HYPERFLEET_DATABASE_POOL_MAX_CONNECTIONS": "40",
    "HYPERFLEET_DATABASE_POOL_MAX_IDLE_CONNECTIONS": "10",
    "HYPERFLEET_DATABASE_POOL_CONN_MAX_LIFETIME": "5m",
    "HYPERFLEET_DATABASE_POOL_CONN_MAX_IDLE_TIME": "1m",
    "HYPERFLEET_DATABASE_POOL_REQUEST_TIMEOUT": "30s",
    "HYPERFLEET_DATABASE_POOL_CONN_RETRY_ATTEMPTS": "10",
    "HYPERFLEET_DATABASE_POOL_CONN_RETRY_INTERVAL": "3s",
    "HYPERFLEET_LOGGING_LEVEL": "warn",
    "HYPERFLEET_LOGGING_FORMAT": "json",
    "HYPERFLEET_LOGGING_OUTPUT": "stdout",
    "HYPERFLEET_TRACING_ENABLED": "false",
    "HYPERFLEET_TRACING_SERVICE_NAME": "x",
    "HYPERFLEET_LOGGING_MASKING_ENABLED": "true",
    "HYPERFLEET_LOGGING_MASKING_HEADERS": "Cookie",
    "HYPERFLEET_LOGGING_MASKING_FIELDS": "pin",
    "HYPERFLEET_METRICS_HOST": "localhost",
    "HYPERFLEET_METRICS_PORT": "9090",
    "HYPERFLEET_METRICS_TLS_ENABLED": "false",
    "HYPERFLEET_METRICS_TLS_CERT_FILE": "x",
    "HYPERFLEET_METRICS_TLS_KEY_FILE": "x",
    "HYPERFLEET_METRICS_LABEL_METRICS_INCLUSION_DURATION": "168h",
    "HYPERFLEET_HEALTH_HOST": "localhost",
    "HYPERFLEET_HEALTH_PORT": "8080",
    "HYPERFLEET_HEALTH_TLS_ENABLED": "false",
    "HYPERFLEET_HEALTH_TLS_CERT_FILE": "x",
    "HYPERFLEET_HEALTH_TLS_KEY_FILE": "x",
    "HYPERFLEET_HEALTH_SHUTDOWN_TIMEOUT": "20s",
    "HYPERFLEET_HEALTH_DB_PING_TIMEOUT": "2s",
}


def test_each_variable_of_the_newest_original_has_an_effect_or_is_reported_as_having_none() -> None:
    told = "\n".join(line for _, line in options.strange_variables(VARIABLES))
    assert "is ignored" not in told
    assert not [level for level, _ in options.strange_variables(VARIABLES) if level > logging.INFO]
    found = shown(env=VARIABLES)
    without = [name for name in VARIABLES if f"{name} has no effect here: " in told]
    used = {one["from"] for one in found.values()} - {"default"}
    assert used | set(without) == set(VARIABLES)
    assert not used & set(without)
    assert found["db_host"]["value"] == "db"
    assert found["log_level"]["value"] == "warning"
    assert found["statement_timeout"]["value"] == 30
    # The service's own name takes precedence.
    both = shown(env={"HYPERFLEET_PORT": "1", "HYPERFLEET_SERVER_PORT": "2"})
    assert both["port"] == {"value": 1, "from": "HYPERFLEET_PORT"}


@pytest.mark.parametrize("variable", ["ADAPTERS_REQUIRED_{}", "{}_ADAPTERS"])
def test_required_adapters_are_accepted_as_a_json_list_like_in_the_original(variable: str) -> None:
    env = {
        "HYPERFLEET_" + variable.format("CLUSTER"): '["validation", "dns"]',
        "HYPERFLEET_" + variable.format("NODEPOOL"): "[]",
    }
    found = shown(env=env)
    assert found["required_adapters_cluster"]["value"] == ["validation", "dns"]
    assert found["required_adapters_nodepool"]["value"] == []
    assert {found[f"required_adapters_{kind}"]["from"] for kind in ("cluster", "nodepool")} == set(env)
    assert not options.strange_variables(env)
    for broken in ('["validation"', "[" * 100_000):
        refused = run_here("config", env=dict.fromkeys(env, broken))
        assert (refused.returncode, "is not a list in JSON" in refused.stdout) == (2, True)
    # Taken as names of adapters, these would be waited for forever.
    for strange in ('["dns", null]', "[true]", "[5]", '[["dns"]]'):
        refused = run_here("config", env=dict.fromkeys(env, strange))
        assert (refused.returncode, "is not a list of strings" in refused.stdout) == (2, True)


def test_flags_of_both_generations_of_the_original_are_accepted() -> None:
    found = shown(
        *("--server-port", "8003", "--db-username=u", "--db-max-open-connections=9", "-l", "warn"),
        *("--http-read-timeout=5s", "--metrics-server-bindaddress", ":8081"),
        *("--health-check-server-bindaddress=localhost:8084", "--db-password", "-v", "-v", "10"),
        *("--enable-db-debug", "--logtostderr=true", "--server-https-enabled=false", "--no-auth"),
    )
    expected = {
        "port": 8003,
        "db_user": "u",
        "db_max_connections": 9,
        "log_level": "warning",
        "read_timeout": 5,
        "metrics_host": "0.0.0.0",
        "metrics_port": 8081,
        "health_host": "localhost",
        "health_port": 8084,
        "enable_https": False,
        "no_auth": True,
        "db_password": "***",
    }
    assert {name: found[name]["value"] for name in expected} == expected
    assert shown("--api-server-bindaddress=[::1]:8001")["host"]["value"] == "::1"
    # The value of a flag is not translated, whatever it looks like.
    assert shown("--db-name", "-v", "--port=1")["db_name"]["value"] == "-v"
    told = run_here("config", "--db-debug", "--sentry-url", "x", "--port=1").stdout
    assert "--db-debug has no effect here: see --log-level=debug" in told
    assert "--sentry-url has no effect here" in told
    refused = run_here("config", "--api-server-bindaddress=8000")
    assert refused.returncode == 2
    assert "is not an address" in refused.stdout


@pytest.mark.parametrize(
    "flag", ["--server-port", "--http-read-timeout", "--metrics-server-bindaddress"]
)
def test_a_flag_of_the_original_that_a_command_lacks_is_refused_as_it_was_written(flag: str) -> None:
    for given in ((flag, ":1"), (f"{flag}=:1",)):
        refused = run_here("migrate", *given)
        assert refused.returncode == 2
        assert f"No such option '{flag}'" in refused.stdout


# Settings that the originals of 2026 had for a while.
SHORT_LIVED = {
    "server": {
        "jwt": {"issuer_url": "https://idp.example", "audience": "fleet", "identity_claim": "sub"}
    },
    "ocm": {"self_token": "x", "debug": "true", "insecure": "true", "mock": {"enabled": "false"}},
    "metrics": {"tls": {"cert_file": "x", "key_file": "x"}},
    "health": {"tls": {"cert_file": "x", "key_file": "x"}},
}
ISSUER = {
    "jwt_issuers": ["https://idp.example"],
    "jwt_audiences": ["fleet"],
    "identity_claims": ["sub"],
}
WITHOUT_EFFECT = [
    *("ocm.self_token", "ocm.debug", "ocm.insecure", "ocm.mock.enabled", "metrics.tls.cert_file"),
    *("metrics.tls.key_file", "health.tls.cert_file", "health.tls.key_file"),
]


def test_short_lived_settings_of_the_2026_originals_are_accepted_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps(SHORT_LIVED))
    given = ("--config", str(tmp_path / "config.yaml"))
    found = shown(*given)
    assert {name: found[name]["value"] for name in ISSUER} == ISSUER
    told = run_here("config", *given).stdout
    assert [name for name in WITHOUT_EFFECT if f": {name} has no effect here: see --" not in told] == []


def test_short_lived_settings_of_the_2026_originals_are_accepted_as_variables() -> None:
    env = {
        "HYPERFLEET_SERVER_JWT_ISSUER_URL": "https://idp.example",
        "HYPERFLEET_SERVER_JWT_AUDIENCE": "fleet",
        "HYPERFLEET_SERVER_JWT_IDENTITY_CLAIM": "sub",
        "HYPERFLEET_OCM_SELF_TOKEN_FILE": "x",
        "HYPERFLEET_OCM_MOCK_ENABLED": "true",
    }
    found = shown(env=env)
    assert {name: found[name]["value"] for name in ISSUER} == ISSUER
    assert [level for level, _ in options.strange_variables(env)] == [logging.INFO] * 2


def test_short_lived_settings_of_the_2026_originals_are_accepted_as_flags() -> None:
    found = shown(
        *("-f", "text", "--health-db-ping-timeout=2s", "--metrics-tls-cert-file", "x"),
        *("--metrics-tls-key-file=x", "--health-tls-cert-file=x", "--health-tls-key-file", "x"),
        *("--metrics-label-metrics-inclusion-duration=168h", "--ocm-mock-enabled", "--ocm-debug=true"),
        *("--ocm-mock", "--ocm-insecure"),
        *("--ocm-self-token=x", "--server-jwt-issuer-url=https://idp.example"),
        *("--server-jwt-audience", "fleet", "--server-jwt-identity-claim=sub", "--port=1"),
    )
    expected = {**ISSUER, "log_format": "text", "port": 1}
    assert {name: found[name]["value"] for name in expected} == expected


ORG = {"header": "X-Org", "key": "org", "required": True}


def tenants(*dimensions: object, header: str = "X-System") -> str:
    """A settings file that enables tenants."""
    tenant = {"enabled": True, "system_header": header, "dimensions": dimensions}
    return json.dumps({"server": {"tenant": tenant}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (tenants(ORG, header=""), "needs --tenant-system-header"),
        (tenants(ORG, header="X Y"), "--tenant-system-header cannot be 'X Y'"),
        (tenants(), "needs --tenant-dimensions"),
        (tenants({**ORG, "required": False}), "at least one dimension must be required"),
        (tenants({**ORG, "required": "perhaps"}), "dimension 1: required must be true or false"),
        (tenants(ORG, {**ORG, "key": "b"}), "dimension 2: another has the header X-Org"),
        (tenants(ORG, {**ORG, "header": "x-org", "key": "b"}), "another has the header x-org"),
        (tenants(ORG, {**ORG, "header": "X-B"}), "dimension 2: another has the key org"),
        (tenants(ORG, header="x-ORG"), "is also that of a dimension"),
        (tenants({"header": "X-Org"}), "dimension 1 has no key"),
        (tenants({"key": "org"}), "dimension 1 has no header"),
        (tenants({**ORG, "key": "a b"}), "dimension 1: key cannot be 'a b'"),
        (tenants({**ORG, "header": "Authorization"}), "header cannot be 'Authorization'"),
        (tenants({**ORG, "header": "X-Request-Id"}), "use for something else"),
        (tenants({**ORG, "header": "Accept-Language"}), "use for something else"),
        (tenants(ORG, header="Host"), "use for something else"),
        (tenants({**ORG, "requird": True}), "did you mean required?"),
        (tenants("X-Org"), "dimension 1 is not a mapping"),
        (tenants(*({"header": f"X-{n}", "key": f"k{n}"} for n in range(9))), "at most 8"),
        ("server: {tenant: {enabled: true, dimensions: x}}", "this is not JSON"),
        ("server: {tenant: {enabled: perhaps}}", "'perhaps' is not a valid boolean"),
    ],
)
def test_an_invalid_tenant_configuration_is_rejected(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    ended = run_here("config", "--check", "--no-auth", f"--config={file}")
    assert ended.returncode == 2
    assert says in " ".join(ended.stdout.split())


def test_tenants_can_be_enabled_by_variables_and_by_flags() -> None:
    dimensions = json.dumps([ORG])
    for ended in (
        run_here(
            "config", "--output=json", "--server-tenant-enabled", f"--tenant-dimensions={dimensions}"
        ),
        run_here(
            "config",
            "--output=json",
            env={
                "HYPERFLEET_SERVER_TENANT_ENABLED": "true",
                "HYPERFLEET_TENANT_DIMENSIONS": dimensions,
            },
        ),
    ):
        found = json.loads(ended.stdout)
        assert found["tenant_enabled"]["value"] is True
        assert found["tenant_dimensions"]["value"] == [ORG]
    refused = run_here(
        "config", "--check", "--no-auth", env={"HYPERFLEET_SERVER_TENANT_ENABLED": "true"}
    )
    assert "needs --tenant-system-header" in refused.stdout


def test_a_check_tells_whether_a_start_would_succeed(database: str, tmp_path: Path) -> None:
    good = run_here("config", "--check", "--no-auth", f"--database-url={database}")
    assert (good.returncode, good.stdout) == (0, "The service would start.\n")
    free = [f"--{name}=0" for name in ("port", "health-port", "metrics-port")]
    good = run_here("config", "--check", "--no-auth", f"--database-url={database}", *free)
    assert (good.returncode, good.stdout) == (0, "The service would start.\n")
    broken = tmp_path / "schema.yaml"
    broken.write_text("openapi: 2")
    for arguments, says in (
        (["--database-url=postgresql://nobody@127.0.0.1:1/x"], "cannot be reached"),
        ([f"--openapi-schema-path={broken}"], "cannot be used"),
        (["--enable-https"], "--https-cert-file"),
        (["--port=70000"], "70000"),
        (["--host=192.0.2.1"], "Cannot listen on 192.0.2.1"),
        (["--health-port=8000"], "must differ"),
        (["--health-port=8000", "--health-host=0.0.0.0"], "must differ"),
        (["--metrics-port=8083", "--metrics-host=localhost"], "must differ"),
        (["--access-log=nan"], "nan"),
        (["--statement-timeout=0.0004"], "0.0004"),
        (["--default-fields=curl=colour"], "'colour' of curl is not a member of any resource"),
    ):
        bad = run_here("config", "--check", "--no-auth", f"--database-url={database}", *arguments)
        assert bad.returncode > 0
        assert says in bad.stdout
    nul = tmp_path / "nul.yaml"
    nul.write_text('data_dir: "a\\0b"')
    bad = run_here("config", "--check", "--no-auth", f"--config={nul}")
    assert (bad.returncode, "data_dir has the character NUL." in bad.stdout) == (2, True)
    bad = run_here("config", "--check", "--no-auth", f"--data-dir={tmp_path / ('a' * 300)}")
    assert (bad.returncode, bad.stdout.endswith("can't be made.\n")) == (1, True)
    bad = run_here("config", "--check", "--no-auth", "--data-dir=~who-is-not-there/data")
    assert (bad.returncode, "--data-dir ~who-is-not-there" in bad.stdout) == (2, True)


@pytest.mark.slow
def test_a_limit_of_four_connections_in_total_is_accepted_with_two_workers(
    database: str,
) -> None:
    arguments = ["--no-auth", "--database-url", database, "--workers=2", "--db-max-open-connections=4"]
    with Serving(*arguments) as server:
        assert "Workers   2" in server.output
    ended = run("config", "--output=json", *arguments)
    assert json.loads(ended.stdout)["db_max_connections"]["value"] == 4
