"""Where a setting's value comes from, and which values are rejected."""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from process import CLEAN, Serving, run

from hyperfleet.auth.remote import check_url
from hyperfleet.cli import main
from hyperfleet.commands import options
from hyperfleet.commands.schema import schema_group
from hyperfleet.errors import ConfigurationError
from hyperfleet.settings.catalogue import Settings
from hyperfleet.settings.file import read_file


def parse(*arguments: str, **env: str) -> Result:
    """Returns what a command with these options makes of arguments and an environment."""

    @options.options()
    @click.command()
    def command(**values: Any) -> None:
        chosen = options.from_options(values)
        click.echo("\n" + json.dumps(dataclasses.asdict(chosen), default=str))

    unset: dict[str, str | None] = {key: None for key in os.environ if key not in CLEAN}
    return CliRunner().invoke(command, arguments, env={**unset, **env})


def chosen(*arguments: str, **env: str) -> dict[str, Any]:
    result = parse(*arguments, **env)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return values


def refused(*arguments: str, **env: str) -> str:
    result = parse(*arguments, **env)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


# Where a value comes from -------------------------------------------------------------------------


def test_a_file_named_in_a_stronger_place_takes_precedence_over_a_value(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("of the flag\n")
    given = f"--db-password-file={tmp_path / 'password'}"
    assert chosen(given, HYPERFLEET_DB_PASSWORD="of the environment")["db_password"] == "of the flag"
    yaml = tmp_path / "config.yaml"
    yaml.write_text("db: {password: of the yaml}\nocm: {client_secret: of the yaml}\n")
    variable = {"HYPERFLEET_DB_PASSWORD_FILE": str(tmp_path / "password")}
    assert chosen(f"--config={yaml}", **variable)["db_password"] == "of the flag"


def test_a_value_takes_precedence_over_a_file_named_in_a_weaker_place(tmp_path: Path) -> None:
    # The file is not even read: it is empty, which would be an error.
    (tmp_path / "password").write_text("")
    variable = {"HYPERFLEET_DB_PASSWORD_FILE": str(tmp_path / "password")}
    assert chosen("--db-password=mine", **variable)["db_password"] == "mine"
    assert chosen("--db-password=", **variable)["db_password"] == ""
    assert "is empty" in refused(**variable)


def test_a_value_and_a_file_in_the_same_place_are_rejected_unless_the_value_is_empty(
    tmp_path: Path,
) -> None:
    file = tmp_path / "password"
    file.write_text("filed")
    both = refused("--db-password=mine", f"--db-password-file={file}")
    assert "Give either --db-password or --db-password-file, not both." in both
    assert "mine" not in both
    assert "filed" not in both
    variables = {"HYPERFLEET_DB_PASSWORD": "mine", "HYPERFLEET_DB_PASSWORD_FILE": str(file)}
    assert "--db-password-file (HYPERFLEET_DB_PASSWORD_FILE)" in refused(**variables)
    yaml = tmp_path / "config.yaml"
    yaml.write_text(f"db: {{password: '', password_file: {file}}}\n")
    assert chosen(f"--config={yaml}")["db_password"] == "filed"


@pytest.mark.parametrize("name", ["no_auth", "require_if_match", "any_caller", "enable_https"])
def test_a_boolean_flag_can_stand_alone_or_be_given_true_or_false(name: str) -> None:
    flag, variable = f"--{name.replace('_', '-')}", f"HYPERFLEET_{name.upper()}"
    assert chosen()[name] is False
    assert chosen(flag)[name] is True
    assert chosen(flag, "--port=1")[name] is True
    assert chosen(f"{flag}=true")[name] is True
    assert chosen(f"{flag}=false", **{variable: "true"})[name] is False
    assert chosen(**{variable: "true"})[name] is True


# The environment ----------------------------------------------------------------------------------

LINKS = {
    "HYPERFLEET_PORT": "tcp://10.0.0.1:8000",
    "HYPERFLEET_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "HYPERFLEET_PORT_8000_TCP_ADDR": "10.0.0.1",
    "HYPERFLEET_PORT_8000_TCP_PORT": "8000",
    "HYPERFLEET_PORT_8000_TCP_PROTO": "tcp",
    "HYPERFLEET_SERVICE_HOST": "10.0.0.1",
    "HYPERFLEET_SERVICE_PORT": "8000",
    "HYPERFLEET_SERVICE_PORT_HTTP": "8000",
    "HYPERFLEET_DB_PORT": "tcp://10.0.0.2:5432",
    "HYPERFLEET_DB_SERVICE_HOST": "10.0.0.2",
    "HYPERFLEET_API_SERVICE_HOST": "10.0.0.1",
    "HYPERFLEET_API_SERVICE_PORT_API": "8000",
    "HYPERFLEET_API_PORT": "udp://10.0.0.1:8000",
    "HYPERFLEET_HEALTH_PORT": "sctp://[fd00::1]:8083",
}


def test_service_links_of_kubernetes_are_not_taken_as_settings() -> None:
    values = chosen(**LINKS)
    assert (values["port"], values["db_port"], values["health_port"]) == (8000, "", 8083)
    said = [line for _, line in options.strange_variables(LINKS)]
    assert [line.split()[0] for line in said] == [
        "HYPERFLEET_DB_PORT",
        "HYPERFLEET_HEALTH_PORT",
        "HYPERFLEET_PORT",
    ]
    assert all("Kubernetes" in line for line in said)
    # A value that is not a service link is still an error.
    assert "not a whole number" in refused(HYPERFLEET_PORT="http://10.0.0.1:8000")


def test_an_unknown_variable_causes_a_warning_with_the_nearest_name() -> None:
    output = parse(HYPERFLEET_DB_PASWORD="hidden", HYPERFLEET_CONFIG="", HYPERFLEET_TOKEN="t").output
    assert "HYPERFLEET_DB_PASWORD is ignored" in output
    assert "did you mean HYPERFLEET_DB_PASSWORD?" in output
    assert "hidden" not in output
    assert output.count("is ignored") == 1
    assert "meant" not in parse(HYPERFLEET_XYZZY="1").output
    assert "HYPERFLEET_XYZZY is ignored" in parse(HYPERFLEET_XYZZY="1").output
    assert "ignored" not in parse(HYPERFLEET_TEST_DATABASE_URL="x", HYPERFLEET_LOG_LEVEL="info").output


def test_a_variable_of_any_command_causes_no_warning_in_others() -> None:
    commands = [main, *main.commands.values(), *schema_group.commands.values()]
    given = [one.envvar or () for command in commands for one in command.params]
    names = [name for one in given for name in ([one] if isinstance(one, str) else one)]
    assert {"HYPERFLEET_URL", "HYPERFLEET_TOKEN", "HYPERFLEET_PORT"} <= {*names}
    found = options.strange_variables(dict.fromkeys(names, "x"))
    assert [line for level, line in found if level > logging.INFO] == []


@pytest.mark.slow
def test_a_service_starts_despite_service_links_and_logs_what_it_ignores(database: str) -> None:
    env = {**LINKS, "HYPERFLEET_DATABASE_URL": database, "HYPERFLEET_PROT": "3"}
    with Serving("--no-auth", env=env) as server:
        assert "HYPERFLEET_PORT is ignored: Kubernetes has set it" in server.output
        assert "HYPERFLEET_PROT is ignored: there is no such setting; did you mean HYPERFLEET_PORT?" in (
            server.output
        )
        assert "HYPERFLEET_API_SERVICE_HOST" not in server.output


# Values -------------------------------------------------------------------------------------------


def test_whole_numbers_can_be_written_the_way_helm_writes_large_ones(tmp_path: Path) -> None:
    assert chosen("--max-body-size=2.097152e+06")["max_body_size"] == 2097152
    assert chosen(HYPERFLEET_MAX_BODY_SIZE="2.097152e+06")["max_body_size"] == 2097152
    assert chosen("--port=8e3")["port"] == 8000
    yaml = tmp_path / "config.yaml"
    yaml.write_text("max_body_size: 2.097152e+06\nport: 8001\n")
    values = chosen(f"--config={yaml}")
    assert (values["max_body_size"], values["port"]) == (2097152, 8001)
    for wrong in ("1.5", "1e400", "nan", "inf", "", "x", "1,5", "0x10"):
        assert "not a whole number" in refused(f"--port={wrong}")
    assert "not in the range 0<=x<=65535" in refused("--port=6.5536e4")
    yaml.write_text("port: true\n")
    assert "not a whole number" in refused(f"--config={yaml}")


def test_durations_can_be_written_as_in_go_with_blanks_around_them() -> None:
    for text, seconds in (("250ms", 0.25), ("1.5s", 1.5), (" 1m30s ", 90), ("1h", 3600), ("2", 2)):
        assert chosen(f"--request-timeout={text}")["request_timeout"] == seconds, text


def test_blanks_and_duplicates_in_lists_of_names_are_ignored() -> None:
    assert chosen("--jwt-audiences=a, b ,,a")["jwt_audiences"] == ["a", "b"]


@pytest.mark.parametrize("name", ["-dns", "dns-", "a b", "dns/x", "dns'", "ü", "a" * 129, "dns\n"])
def test_required_adapters_must_be_valid_names_of_adapters(name: str) -> None:
    for kind in ("cluster", "nodepool"):
        said = refused(f"--required-adapters-{kind}", f"ok,{name}x\n{name}")
        assert f"--required-adapters-{kind}" in said
        assert "a name that an adapter can have" in said
    good = f"dns,a.b_c-d,9,{'a' * 128}"
    assert chosen(f"--required-adapters-cluster={good}")["required_adapters_cluster"] == good.split(",")


def test_naming_two_databases_is_rejected_wherever_the_names_come_from(tmp_path: Path) -> None:
    (tmp_path / "host").write_text("db.example")
    url, host_file = "postgresql://u:secret@h/x", str(tmp_path / "host")
    config = tmp_path / "config.yaml"
    config.write_text("db: {host: db.example}\n")
    for arguments, env in (
        ([f"--database-url={url}", "--db-host=db.example"], {}),
        (["--db-host=db.example"], {"HYPERFLEET_DATABASE_URL": url}),
        ([f"--database-url={url}"], {"HYPERFLEET_DB_HOST_FILE": host_file}),
        ([f"--database-url={url}", f"--config={config}"], {}),
    ):
        said = refused(*arguments, **env)
        assert "--database-url" in said
        assert "--db-host" in said
        assert "both name a database" in said
        assert "secret" not in said
    # Other settings of the database complete the URL.
    assert chosen(f"--database-url={url}", "--db-password=other")["db_password"] == "other"


@pytest.mark.slow
def test_an_unusable_url_is_reported_without_its_password() -> None:
    for command in ("serve", "migrate"):
        done = run(command, "--database-url", "mysql://me:secret@db.example/fleet")
        assert done.returncode == 2
        assert "--database-url: the scheme mysql is not postgresql" in done.stdout
        assert "secret" not in done.stdout
    for good in ("postgres://h/x", "postgresql://h/x", "host=h dbname=x", "host=h options='-c a=b://c'"):
        assert chosen("--database-url", good)["database_url"] == good
    with pytest.raises(
        ConfigurationError, match="--ocm-base-url: the scheme ftp is not https"
    ) as caught:
        check_url("--ocm-base-url", "ftp://me:secret@ocm.example")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"ocm\.example must be https") as caught:
        check_url("--ocm-base-url", "http://me:secret@ocm.example/")
    assert "secret" not in str(caught.value)
    for url in ("https://me:secret@ocm.example:99999/", "https://ocm.example:secret/"):
        with pytest.raises(ConfigurationError, match="--ocm-base-url: this is not a URL") as caught:
            check_url("--ocm-base-url", url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:pa@hush@db.example/fleet",
        "postgresql://me:pa/hush@db.example/fleet",
        "postgresql://me:pa:hush/@db.example/fleet",
        "postgresql://me:hush%zz@db.example/fleet",
        "postgresql://me:pa#/hush@db.example:5432/fleet",
        "jdbc:postgresql://db.example/fleet?password=hush",
        "http:/db.example/hush",
        "hush",
        "//me:hush@db.example/fleet",
        "  ",
        "host='hush",
        "postgresql://me:hush@db.example:0/fleet",
        "postgresql://me:hush@db.example:5432,other:65536/fleet",
        "host=db.example port=hush",
        "postgresql://me:hush@db.example/fleet?connect_timeout=hush",
        "postgresql://me:hush@db.example/fleet?connect_timeout=inf",
        "postgresql://me:hush@db.example/fleet?connect_timeout=",
        "host=one,two,three port=5432,5433 password=hush",
        "host=db.example hostaddr=192.0.2.1,192.0.2.2 password=hush",
    ],
)
def test_an_invalid_database_url_is_rejected_without_showing_its_password(url: str) -> None:
    for name in ("--database-url", "--read-database-url"):
        variable = "HYPERFLEET_" + name[2:].replace("-", "_").upper()
        for arguments, given in (([f"{name}={url}"], {}), ([], {variable: url})):
            said = refused("--db-host=h", *arguments, **given)
            assert f" {name}" in said
            assert "hush" not in said


def test_a_rejected_value_is_reported_with_its_source(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("logging: {level: loud}")
    words = "Invalid value for --log-level"
    assert f"{words} (of the --config file): " in refused(f"--config={config}")
    assert f"{words} (HYPERFLEET_LOGGING_LEVEL): " in refused(HYPERFLEET_LOGGING_LEVEL="loud")
    assert f"{words}: " in refused("--log-level=loud", HYPERFLEET_LOG_LEVEL="info")


def test_a_database_url_may_have_blanks_around_it_and_an_upper_case_scheme() -> None:
    known = "postgresql://me:p%40ss@db.example/fleet"
    assert chosen("--database-url", f" {known}\n")["database_url"] == known
    assert chosen("--database-url", known.replace("postgresql", "POSTGRESQL"))["database_url"] == known


def test_a_yaml_value_that_no_flag_could_have_is_rejected_by_name(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    for text, name in (
        ("no-auth: [true]", "no_auth"),
        ("port: [8000]", "port"),
        ("db: {host: [a, b]}", "db_host"),
        ("cors_origins: [[a]]", "cors_origins"),
        ("no_auth: maybe", "--no-auth"),
        ("port: 2026-01-01", "--port"),
    ):
        config.write_text(text)
        said = refused(f"--config={config}")
        assert name in said, text
    config.write_text("no-auth: 1\nport: 4.0\ncors_origins: [a, b]\ndb: {name: 7}")
    values = chosen(f"--config={config}")
    assert (values["no_auth"], values["port"], values["db_name"]) == (True, 4, "7")
    assert values["cors_origins"] == ["a", "b"]


def test_a_setting_given_twice_in_a_yaml_file_is_rejected_or_the_ignored_name_reported(
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.yaml"
    for text in ("db: {host: a}\ndb_host: b", "db-host: a\ndb_host: a"):
        config.write_text(text)
        assert "names the setting db_host twice" in refused(f"--config={config}")
    for text in ("server: {port: 1}\nport: 2", "port: 2\nserver: {port: 1}"):
        config.write_text(text)
        assert chosen(f"--config={config}")["port"] == 2
        assert read_file(config).told == [
            f"{config}: server.port has no effect here: port is already set under another name"
        ]
    config.write_text("port: 8001\nserver: {port: 8001}")
    assert read_file(config).told == []


def test_a_broken_yaml_file_is_reported_by_line_without_its_contents(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    for text in (
        "port: 1\ndb_password: 'hush",
        "db_password: hush: hush",
        "db_password: *hush",
        "\0hush",
    ):
        config.write_text(text)
        said = refused(f"--config={config}")
        assert "hush" not in said
        assert str(config) in said
        assert "YAML" in said
    config.write_text("port: 1\ndb_password: hush: hush")
    assert "line 2" in refused(f"--config={config}")


def test_an_unknown_name_in_a_yaml_file_or_in_lower_case_gets_a_hint(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("db: {pasword: hush}")
    said = refused(f"--config={config}")
    assert "db_pasword; did you mean db_password?" in said
    assert "hush" not in said
    for name in ("hyperfleet_port", "Hyperfleet_Port"):
        output = parse(**{name: "9"}).output
        assert f"{name} is ignored: there is no such setting; did you mean HYPERFLEET_PORT?" in output


def test_settings_contradict_each_other_only_if_they_have_an_effect() -> None:
    options.check(Settings(read_database_url="host=b", db_host="a"))
    options.check(Settings(enable_authz=True, enable_jwt=False, no_auth=True))
    with pytest.raises(ConfigurationError, match="name their primary with --database-url"):
        options.check(Settings(read_database_url="host=b"))
    with pytest.raises(ConfigurationError, match="--enable-authz needs verified callers"):
        options.check(Settings(enable_authz=True, enable_jwt=False))


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "-inf", "1e10", "3600.5", "x", ""])
def test_an_invalid_or_unbounded_timeout_is_rejected(value: str) -> None:
    said = refused(f"--statement-timeout={value}")
    assert "--statement-timeout" in said
    assert "from 0 to 3600" in said


def test_numbers_out_of_range_are_rejected() -> None:
    for flag in (
        *("shutdown-delay=301", "shutdown-timeout=3601", "read-timeout=1e18"),
        *("db-connect-timeout=1e9", "max-body-size=1e12", "max-header-size=1e9"),
    ):
        assert "is not in the range" in refused(f"--{flag}")
    for port in ("0", "65536", "x", "5432,x", "5e3"):
        assert "--db-port must be a port from 1 to 65535" in refused("--db-host=h", f"--db-port={port}")
    assert chosen("--db-host=a,b", "--db-port=5432,5433")["db_port"] == "5432,5433"
