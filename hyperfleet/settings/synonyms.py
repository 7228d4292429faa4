"""Names of settings in both generations of the original, and the settings that they stand for here.

In its YAML file a name is a path, ``server.port``; its variable is ``HYPERFLEET_SERVER_PORT``.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from hyperfleet.errors import ConfigurationError


class Synonym(NamedTuple):
    """Another name of a setting.

    :param path: the path in the original's YAML file; empty if there was only a flag
    :param flags: the flags, separated by blanks
    :param setting: the setting here; empty if there is none
    :param why: if there is none, the reason or what to use instead
    :param bare: whether the flag may have no value
    :param former: an earlier name of the variable
    """

    path: str
    flags: str
    setting: str = ""
    why: str = ""
    bare: bool = False
    former: str = ""

    @property
    def field(self) -> str:
        """The path in the form of a field of this service's settings."""
        return self.path.replace(".", "_")

    @property
    def variables(self) -> list[str]:
        """The environment variables: for the path, and for the earlier name."""
        return ["HYPERFLEET_" + name.upper() for name in (self.field, self.former) if name]


KEPT = "connections are kept as long as they are useful"
RETRIED = "see --db-connect-timeout"
STDOUT = "the log goes to stdout"
DEBUG = "see --log-level=debug"
ONE_CERTIFICATE = "see --https-cert-file, which applies to all listeners"
ACCESS = "see --enable-authz"

SYNONYMS = (
    Synonym("server.hostname", "--server-hostname --api-server-hostname", why="no response has one"),
    Synonym("server.host", "--server-host", "host"),
    Synonym("server.port", "--server-port", "port"),
    Synonym("server.openapi_schema_path", "--server-openapi-schema-path", "openapi_schema_path"),
    Synonym("server.timeouts.read", "--server-read-timeout --http-read-timeout", "read_timeout"),
    Synonym("server.timeouts.write", "--server-write-timeout --http-write-timeout", "write_timeout"),
    Synonym("server.tls.enabled", "--server-https-enabled", "enable_https", bare=True),
    Synonym("server.tls.cert_file", "--server-https-cert-file", "https_cert_file"),
    Synonym("server.tls.key_file", "--server-https-key-file", "https_key_file"),
    Synonym("server.jwt.enabled", "--server-jwt-enabled", "enable_jwt", bare=True),
    Synonym("server.jwt.configs", "", "jwt_configs"),
    Synonym("server.jwt.issuer_url", "--server-jwt-issuer-url", "jwt_issuers"),
    Synonym("server.jwt.audience", "--server-jwt-audience", "jwt_audiences"),
    Synonym("server.jwt.identity_claim", "--server-jwt-identity-claim", "identity_claims"),
    Synonym("server.authz.enabled", "--server-authz-enabled", "enable_authz", bare=True),
    Synonym("server.jwk.cert_file", "--server-jwk-cert-file", "jwk_cert_file"),
    Synonym("server.jwk.cert_url", "--server-jwk-cert-url", "jwk_cert_url"),
    Synonym("server.acl.file", "--server-acl-file", "acl_file"),
    Synonym("server.tenant.enabled", "--server-tenant-enabled", "tenant_enabled", bare=True),
    Synonym("server.tenant.system_header", "--server-tenant-system-header", "tenant_system_header"),
    Synonym("server.tenant.dimensions", "", "tenant_dimensions"),
    Synonym("database.dialect", "--db-dialect", why="it is always PostgreSQL"),
    Synonym("database.host", "", "db_host"),
    Synonym("database.host_file", "", "db_host_file"),
    Synonym("database.port", "", "db_port"),
    Synonym("database.port_file", "", "db_port_file"),
    Synonym("database.name", "", "db_name"),
    Synonym("database.name_file", "", "db_name_file"),
    Synonym("database.username", "--db-username", "db_user"),
    Synonym("database.username_file", "", "db_user_file"),
    Synonym("database.password", "", "db_password"),
    Synonym("database.password_file", "", "db_password_file"),
    Synonym("database.ssl.mode", "--db-ssl-mode", "db_sslmode"),
    Synonym(
        "database.ssl.root_cert_file", "--db-root-cert-file --db-ssl-certificate-file", "db_rootcert"
    ),
    Synonym("database.pool.max_connections", "--db-max-open-connections", "db_max_connections"),
    Synonym("database.pool.max_idle_connections", "", why=KEPT),
    Synonym("database.pool.conn_max_lifetime", "", why=KEPT),
    Synonym("database.pool.conn_max_idle_time", "", why=KEPT),
    Synonym("database.pool.request_timeout", "", "statement_timeout"),
    Synonym("database.pool.conn_retry_attempts", "", why=RETRIED),
    Synonym("database.pool.conn_retry_interval", "", why=RETRIED),
    Synonym("database.debug", "--db-debug --enable-db-debug", why=DEBUG, bare=True),
    Synonym("logging.level", "-l", "log_level"),
    Synonym("logging.format", "-f", "log_format"),
    Synonym("logging.output", "--log-output", why=STDOUT),
    Synonym("logging.masking.enabled", "--log-masking-enabled", why="secrets are masked", bare=True),
    Synonym("logging.masking.headers", "--log-masking-sensitive-headers", why="no header is logged"),
    Synonym("logging.masking.fields", "--log-masking-sensitive-fields", "log_masked"),
    Synonym("logging.otel.enabled", "--log-otel-enabled", "tracing_enabled", bare=True),
    Synonym("logging.otel.sampling_rate", "--log-otel-sampling-rate", why="see OTEL_TRACES_SAMPLER"),
    Synonym("tracing.service_name", "", why="see OTEL_SERVICE_NAME"),
    Synonym("metrics.tls.enabled", "--metrics-tls-enabled", "enable_metrics_https", bare=True),
    Synonym("metrics.tls.cert_file", "--metrics-tls-cert-file", why=ONE_CERTIFICATE),
    Synonym("metrics.tls.key_file", "--metrics-tls-key-file", why=ONE_CERTIFICATE),
    Synonym(
        "metrics.label_metrics_inclusion_duration",
        "--metrics-label-metrics-inclusion-duration",
        why="no metric is about labels",
    ),
    Synonym("metrics.deletion_stuck_threshold", "--metrics-deletion-stuck-threshold", "stuck_after"),
    Synonym(
        "metrics.reconciliation_stuck_threshold",
        "--metrics-reconciliation-stuck-threshold",
        "stuck_after",
    ),
    Synonym("health.tls.enabled", "--health-tls-enabled", "enable_health_check_https", bare=True),
    Synonym("health.tls.cert_file", "--health-tls-cert-file", why=ONE_CERTIFICATE),
    Synonym("health.tls.key_file", "--health-tls-key-file", why=ONE_CERTIFICATE),
    Synonym("health.shutdown_timeout", "--health-shutdown-timeout", "shutdown_timeout"),
    Synonym("health.db_ping_timeout", "--health-db-ping-timeout", why="it is always 2 s"),
    Synonym("ocm.self_token", "--ocm-self-token", why=ACCESS),
    Synonym("ocm.self_token_file", "", why=ACCESS),
    Synonym("ocm.debug", "--ocm-debug", why=ACCESS, bare=True),
    Synonym("ocm.insecure", "--ocm-insecure", why="see --ocm-ca-file", bare=True),
    Synonym(
        "ocm.mock.enabled",
        "--ocm-mock-enabled --ocm-mock --enable-ocm-mock --enable-mock",
        why=ACCESS,
        bare=True,
    ),
    Synonym("adapters.required.cluster", "", "required_adapters_cluster", former="cluster_adapters"),
    Synonym("adapters.required.nodepool", "", "required_adapters_nodepool", former="nodepool_adapters"),
    Synonym("", "--db-advisory-lock-timeout", why="migrations wait for each other"),
    Synonym("", "-v --v --vmodule --stderrthreshold --log_dir", why=DEBUG),
    Synonym("", "--logtostderr --alsologtostderr", why=STDOUT, bare=True),
    Synonym("", "--enable-sentry", why="errors are in the log", bare=True),
    Synonym("", "--sentry-url --sentry-project --sentry-timeout", why="errors are in the log"),
)

# The first generation's flags for addresses: HOST:PORT, or :PORT for all addresses.
ADDRESSES = {
    "--api-server-bindaddress": ("host", "port"),
    "--health-check-server-bindaddress": ("health_host", "health_port"),
    "--health-server-bindaddress": ("health_host", "health_port"),
    "--metrics-server-bindaddress": ("metrics_host", "metrics_port"),
}
BY_FIELD = {one.field: one for one in SYNONYMS if one.path}
BY_VARIABLE = {variable: one for one in SYNONYMS for variable in one.variables}
BY_FLAG = {flag: one for one in SYNONYMS for flag in one.flags.split()}


def variables(setting: str) -> list[str]:
    """Returns the original's environment variables for a setting."""
    return [name for one in SYNONYMS if one.setting == setting for name in one.variables]


def translated(arguments: Sequence[str], known: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Replaces the original's flags in the arguments of a command; also returns a message for each that
    has no effect here. Raises ConfigurationError for a malformed address.

    Flags for settings that the command does not have are kept as they are, and so are its errors.

    :param known: the command's own flags, and whether each needs a value
    """
    given: list[str] = []
    told: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        synonym = BY_FLAG.get(flag)
        meant = ADDRESSES.get(flag) or ((synonym.setting,) if synonym and synonym.setting else ())
        if flag in known:
            given.append(argument)
            if known[flag] and not equals:
                given += islice(rest, 1)
        elif not all(_flag(setting) in known for setting in meant):
            given.append(argument)
        elif flag in ADDRESSES:
            given += _address(flag, value if equals else next(rest, ""))
        elif synonym is None:
            given.append(argument)
        elif synonym.setting:
            given.append(_flag(synonym.setting) + equals + value)
            if not (equals or synonym.bare):
                given += islice(rest, 1)
        else:
            told.append(f"{flag} has no effect here: {synonym.why}")
            if not (equals or synonym.bare):
                next(rest, "")
    return given, told


def _address(flag: str, value: str) -> Iterator[str]:
    host, colon, port = value.rpartition(":")
    if not (colon and port.isdigit()):
        raise ConfigurationError(f"{flag}: {value[:100]!r} is not an address such as localhost:8000.")
    names = [_flag(name) for name in ADDRESSES[flag]]
    yield f"{names[0]}={host.strip('[]') or '0.0.0.0'}"  # noqa: S104 (what it means in the original)
    yield f"{names[1]}={port}"


def _flag(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def of_file(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Renames the settings of a YAML file to those of this service; also returns a message for each that
    has no effect here.
    """
    found: dict[str, Any] = {}
    told = []
    # The service's own names come first, and so take precedence.
    for name, value in sorted(values.items(), key=lambda one: one[0] in BY_FIELD):
        synonym = BY_FIELD.get(name, Synonym("", "", name))
        if not synonym.setting:
            told.append(f"{synonym.path} has no effect here: {synonym.why}")
        elif found.setdefault(synonym.setting, value) != value:
            kept = f"{synonym.setting} is already set under another name"
            told.append(f"{synonym.path} has no effect here: {kept}")
    return found, told
