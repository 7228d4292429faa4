"""Every setting, declared once: flag, environment variable, YAML key, default and help.

A setting is a field of :class:`Settings`. Its flag is ``--field-name``, its environment variable
``HYPERFLEET_FIELD_NAME`` and its YAML key ``field_name``, or nested, as ``field: {name: ...}``. A
flag wins over the environment, that over the file given by ``--config``, that over the default.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from click.core import ParameterSource

from hyperfleet import log
from hyperfleet.nearest import nearest

logger = logging.getLogger(__name__)

# Beside its own variable, a setting may answer to the name that the original's users have set.
OTHER_VARIABLES = {"openapi_schema_path": "OPENAPI_SCHEMA_PATH"}


class Names(click.ParamType[Any]):
    """A list of names, separated by commas or as given; a YAML file may hold a list instead."""

    name = "names"

    def __init__(self, separator: str = ",") -> None:
        self.separator = separator

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names without blanks and repetitions, in the order given."""
        if isinstance(value, str):
            value = value.split(self.separator)
        elif not isinstance(value, list | tuple):
            value = [value]
        return tuple(dict.fromkeys(str(name).strip() for name in value if str(name).strip()))


class AdapterNames(Names):
    """Names that an adapter can report under, as the contract has them."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names; fails for one that no report could have, for which everybody would wait forever."""
        names = super().convert(value, param, ctx)
        for name in names:
            if len(name) > 128 or not ADAPTER.fullmatch(name):
                self.fail(
                    f"{name[:200]!r} is no adapter's name: at most 128 letters, digits, '.', '_' and "
                    "'-', with a letter or a digit at both ends.",
                    param,
                    ctx,
                )
        return names


class Whole(click.IntRange):
    """A whole number, which may be written as templates write large ones: 2.097152e+06."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, within its range."""
        try:
            number = float("" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not number.is_integer():
            self.fail(f"{value!r} is not a whole number.", param, ctx)
        return int(super().convert(int(number), param, ctx))


def setting(default: Any, description: str, **option: Any) -> Any:
    """A field of :class:`Settings`: its default, its help, and what its click option needs beside."""
    return dataclasses.field(default=default, metadata={"help": description, "option": option})


# The consoles, documentation and customer portal of Red Hat, which the original let in.
CONSOLES = (
    "https://console.redhat.com",
    "https://console.stage.redhat.com",
    "https://qaprodauth.console.redhat.com",
    "https://qa.console.redhat.com",
    "https://ci.console.redhat.com",
    "https://qa.foo.redhat.com:1337",
    "https://prod.foo.redhat.com:1337",
    "https://ci.foo.redhat.com:1337",
    "https://api.openshift.com",
    "https://api.stage.openshift.com",
    "https://access.redhat.com",
    "https://access.stage.redhat.com",
    "https://access.qa.redhat.com",
)

# Generated from the contract of December 2025, and strict: it refuses members that it does not know.
STRICT_CLIENT = (
    "OpenAPI-Generator/1.0.0/go=kind,id,href,name,labels,spec,generation,owner_references,"
    "created_time,updated_time,created_by,updated_by,status.phase,status.observed_generation,"
    "status.last_transition_time,status.last_updated_time,"
    + ",".join(
        f"status.conditions.{member}"
        for member in (
            *("type", "status", "reason", "message", "observed_generation"),
            *("created_time", "last_updated_time", "last_transition_time"),
        )
    )
    + ",adapter,observed_generation,data,metadata,last_report_time,conditions.type,conditions.status,"
    "conditions.reason,conditions.message,conditions.last_transition_time"
)

# The keys of Red Hat SSO, where anybody can have an account.
PUBLIC_KEYS = "https://sso.redhat.com/auth/realms/redhat-external/protocol/openid-connect/certs"

ADAPTER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
PORT = Whole(0, 65535)
# A flag alone turns it on; a value may say so too, or turn it off.
SWITCH: dict[str, Any] = {"type": bool, "is_flag": False, "flag_value": "true"}
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of the service, with their defaults."""

    host: str = setting(
        "", "Address of the API. Default: 127.0.0.1 with --no-auth, every address without."
    )
    port: int = setting(8000, "Port of the API; 0 takes a free one.", type=PORT)
    health_host: str = setting("", "Address of the health checks. Default: as --host.")
    health_port: int = setting(8083, "Port of the health checks; 0 takes a free one.", type=PORT)
    metrics_host: str = setting("", "Address of the metrics. Default: as --host.")
    metrics_port: int = setting(8080, "Port of the metrics; 0 takes a free one.", type=PORT)
    threads: int = setting(
        16, "Requests handled at once; each may hold a connection.", type=Whole(1, 1000)
    )
    max_body_size: int = setting(1024 * 1024, "Largest body of a request, in bytes.", type=Whole(1024))
    max_header_size: int = setting(32 * 1024, "Largest head of a request, in bytes.", type=Whole(1024))
    read_timeout: int = setting(30, "Seconds in which a request must have arrived.", type=Whole(1))
    cors_origins: tuple[str, ...] = setting(
        CONSOLES, "Origins whose pages may call the API, by comma.", type=Names()
    )
    enable_https: bool = setting(False, "Serve the API with TLS.", **SWITCH)
    enable_health_check_https: bool = setting(False, "Serve the health checks with TLS.", **SWITCH)
    enable_metrics_https: bool = setting(False, "Serve the metrics with TLS.", **SWITCH)
    https_cert_file: Path | None = setting(None, "Certificate chain for TLS, PEM.", type=FILE)
    https_key_file: Path | None = setting(None, "Key of the certificate, PEM.", type=FILE)
    shutdown_timeout: int = setting(
        20, "Seconds that requests under way are given at the end.", type=Whole(0)
    )
    shutdown_delay: int = setting(
        0,
        "Seconds at the end in which /readyz answers 503 already and requests are still taken.",
        type=Whole(0),
    )

    no_auth: bool = setting(False, "Serve without authentication: for development.", **SWITCH)
    enable_jwt: bool = setting(True, "Require a bearer token.", **SWITCH)
    enable_authz: bool = setting(False, "Ask whether the caller may.", **SWITCH)
    any_caller: bool = setting(
        False, "Let in everybody whom the public issuer, that of the default keys, knows.", **SWITCH
    )
    jwk_cert_url: str = setting(
        PUBLIC_KEYS,
        "URL of the keys that tokens are verified with; empty for none.",
    )
    jwk_cert_ca_file: Path | None = setting(
        None, "File with the certificates that sign those of the key servers.", type=FILE
    )
    jwk_cert_file: Path | None = setting(
        None, "File of keys that tokens are verified with, beside the URL.", type=FILE
    )
    jwt_issuers: tuple[str, ...] = setting(
        (),
        "Issuers whose tokens are accepted, by comma: ISSUER for the keys above, or ISSUER=URL or "
        "ISSUER=FILE with keys of its own. Default: whoever signs with the keys above.",
        type=Names(),
    )
    jwt_audiences: tuple[str, ...] = setting(
        (), "Audiences, by comma, one of which a token must name. Default: any.", type=Names()
    )
    identity_claims: tuple[str, ...] = setting(
        ("email", "username", "preferred_username", "sub"),
        "Claims that name the caller, by comma; the first that does counts.",
        type=Names(),
    )
    acl_file: Path | None = setting(None, "YAML list of claims and patterns that let in.", type=FILE)
    ocm_base_url: str = setting("https://api.openshift.com", "Where --enable-authz asks.")
    ocm_token_url: str = setting(
        "https://sso.redhat.com/auth/realms/redhat-external/protocol/openid-connect/token",
        "Where the token for --enable-authz comes from.",
    )
    ocm_client_id: str = setting("", "Client id for --enable-authz.")
    ocm_client_id_file: Path | None = setting(None, "File that holds --ocm-client-id.", type=FILE)
    ocm_client_secret: str = setting("", "Client secret for --enable-authz.")
    ocm_client_secret_file: Path | None = setting(
        None, "File that holds --ocm-client-secret.", type=FILE
    )
    ocm_ca_file: Path | None = setting(
        None, "File with the certificates that sign those of OCM.", type=FILE
    )

    database_url: str = setting(
        "", "postgresql:// URL or key=value string. Default: an embedded PostgreSQL."
    )
    database_url_file: Path | None = setting(None, "File that holds --database-url.", type=FILE)
    db_host: str = setting("", "Host of the database, instead of --database-url.")
    db_host_file: Path | None = setting(None, "File that holds --db-host.", type=FILE)
    db_port: str = setting("", "Port of the database.")
    db_port_file: Path | None = setting(None, "File that holds --db-port.", type=FILE)
    db_name: str = setting("", "Name of the database.")
    db_name_file: Path | None = setting(None, "File that holds --db-name.", type=FILE)
    db_user: str = setting("", "User of the database.")
    db_user_file: Path | None = setting(None, "File that holds --db-user.", type=FILE)
    db_password: str = setting("", "Password of the database.")
    db_password_file: Path | None = setting(None, "File that holds --db-password.", type=FILE)
    db_sslmode: str = setting(
        "",
        "How the connection is encrypted.",
        type=click.Choice(["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
    )
    db_rootcert: str = setting("", "File with the certificates that sign the database's.")
    db_pool_size: int = setting(16, "Most connections to the database.", type=Whole(1, 1000))
    db_connect_timeout: int = setting(
        30, "Seconds to retry a database that is not reachable at start.", type=Whole(0)
    )
    statement_timeout: float = setting(
        5.0, "Seconds after which a search, or another statement, is ended.", type=click.FloatRange(0)
    )
    data_dir: Path | None = setting(
        None,
        "Folder of the embedded PostgreSQL. Default: hyperfleet in the user's data home.",
        type=click.Path(file_okay=False, path_type=Path),
    )

    required_adapters_cluster: tuple[str, ...] = setting(
        (),
        "Adapters that must report on a cluster, by comma. Default: all that do.",
        type=AdapterNames(),
    )
    required_adapters_nodepool: tuple[str, ...] = setting(
        (), "Adapters that must report on a node pool, by comma.", type=AdapterNames()
    )

    require_if_match: bool = setting(
        False, "Refuse a PATCH or DELETE that does not say which version it is for.", **SWITCH
    )
    openapi_schema_path: str = setting(
        "", "OpenAPI document whose ClusterSpec and NodePoolSpec say what specs may hold."
    )
    schema_required: bool = setting(
        True,
        "Refuse to start when the document at --openapi-schema-path cannot be used.",
        **SWITCH,
    )

    default_fields: tuple[str, ...] = setting(
        (STRICT_CLIENT,),
        "Members shown to clients whose User-Agent begins so, when they do not say it: "
        "AGENT=FIELDS, separated by semicolons. Default: those that a strict client of December 2025 "
        "knows.",
        type=Names(";"),
    )
    validate_responses: bool = setting(
        False, "Check every response against the contract: for tests.", **SWITCH
    )
    log_level: str = setting(
        "info",
        "Least severe message that is logged.",
        type=click.Choice(["debug", "info", "warning", "error"]),
    )

    @property
    def authenticated(self) -> bool:
        """Whether callers have to show a token."""
        return self.enable_jwt and not self.no_auth

    def required_adapters(self, kind: str) -> tuple[str, ...]:
        """The adapters that must report on a ``Cluster`` or a ``NodePool``; empty: all that do."""
        names: tuple[str, ...] = getattr(self, f"required_adapters_{kind.lower()}")
        return names


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"db": {"host": "x"}}`` as ``{"db_host": "x"}``; a hyphen counts as an underscore."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + str(key).replace("-", "_")
        if isinstance(value, Mapping):
            flat |= _flat(value, name + "_")
        elif value is not None:
            flat[name] = value
    return flat


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, by field name.

    Raises click.BadParameter, with the reason, for a file that is no YAML mapping or that names a
    setting which does not exist.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}") from None
    if not isinstance(tree, Mapping):
        raise click.BadParameter(f"{path} must hold a mapping of settings.")
    values = _flat(tree)
    unknown = ", ".join(sorted(values.keys() - FIELDS.keys()))
    if unknown:
        raise click.BadParameter(f"{path} names settings that do not exist: {unknown}")
    return values


def _use_file(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map = read_file(path)


# What Kubernetes sets in every container for a service called hyperfleet, or hyperfleet- and more:
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
LINK = re.compile(
    r"HYPERFLEET_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
FOR_TESTS = "HYPERFLEET_TEST_DATABASE_URL"


def _is_link(name: str, value: str) -> bool:
    """Whether Kubernetes has set a variable, for a service whose name begins as the settings' do."""
    address = name.endswith("_PORT") and LINK_VALUE.match(value)
    return name.startswith("HYPERFLEET_") and bool(address or LINK.fullmatch(name))


def strange_variables(environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """The variables of an environment that look like settings and are none; of each the level and the
    line for the log.
    """
    known = [name.upper() for name in FIELDS] + ["CONFIG", "TOKEN"]
    lines = []
    for variable in sorted(environment):
        if not variable.startswith("HYPERFLEET_") or variable == FOR_TESTS:
            continue
        name = variable.removeprefix("HYPERFLEET_")
        if _is_link(variable, environment[variable]):
            if name in known:
                line = f"{variable} is ignored: Kubernetes has set it, for a service of that name"
                lines.append((logging.INFO, line))
        elif name not in known:
            near = nearest(name, known)
            hint = f"; is HYPERFLEET_{near} meant?" if near else ""
            lines.append((logging.WARNING, f"{variable} is ignored: there is no such setting{hint}"))
    return lines


class _Option(click.Option):
    """An option that does not take Kubernetes' word for the user's.

    :param emptied: whether an empty variable empties it; click takes such a one for not set
    """

    def __init__(self, *args: Any, emptied: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.emptied = emptied

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        for name in self.envvar or ():
            value = os.environ.get(name)
            if value is not None and (value or self.emptied) and not _is_link(name, value):
                return value
        return None


def _option(field: "dataclasses.Field[Any]") -> click.Option:
    variables = ["HYPERFLEET_" + field.name.upper()]
    if field.name in OTHER_VARIABLES:
        variables.append(OTHER_VARIABLES[field.name])
    kind = field.metadata["option"].get("type")
    return _Option(
        ["--" + field.name.replace("_", "-")],
        # What has a default that somebody may want to turn off.
        emptied=bool(field.default) and (kind is None or isinstance(kind, Names)),
        envvar=variables,
        show_envvar=True,
        default=field.default,
        show_default=", ".join(field.default)
        if isinstance(field.default, tuple) and field.default
        else field.default not in ("", None, (), False),
        help=field.metadata["help"],
        **field.metadata["option"],
    )


def options(*only: str) -> Callable[[click.Command], click.Command]:
    """Adds the options of the settings to a command, and ``--config``: all, or those whose names
    begin with one of ``only``.
    """

    def add(command: click.Command) -> click.Command:
        config = click.Option(
            ["--config"],
            type=FILE,
            is_eager=True,
            expose_value=False,
            callback=_use_file,
            envvar="HYPERFLEET_CONFIG",
            show_envvar=True,
            help="YAML file with settings.",
        )
        command.params.append(config)
        command.params += [
            _option(field) for name, field in FIELDS.items() if not only or name.startswith(only)
        ]
        return command

    return add


# What counts most comes first.
SOURCES = (
    ParameterSource.COMMANDLINE,
    ParameterSource.ENVIRONMENT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)


def from_options(values: Mapping[str, Any]) -> Settings:
    """The settings that the present command was called with; what a ``*_file`` holds is read here. The
    log is set up with them, and told of variables that are no settings.

    Raises click.UsageError for a file that is empty or cannot be read, and for settings that contradict
    each other.
    """
    ctx = click.get_current_context()
    chosen = {name: value for name, value in values.items() if name in FIELDS}
    given = {name: _given(ctx, name) for name in chosen}
    for path_name in list(chosen):
        name = path_name.removesuffix("_file")
        if name == path_name or name not in chosen or chosen[path_name] is None:
            continue
        rank, other = _rank(ctx, path_name), _rank(ctx, name)
        if rank < other or (rank == other and not chosen[name]):
            chosen[name], given[name] = _content(path_name, chosen[path_name]), given[path_name]
        elif rank == other:
            raise click.UsageError(f"{given[name]} and {given[path_name]} say the same: give one.")
    if chosen.get("database_url"):
        check_database_url(given["database_url"], chosen["database_url"])
        if chosen.get("db_host"):
            raise click.UsageError(
                f"{given['database_url']} and {given['db_host']} both name a database: give one."
            )
    settings = Settings(**chosen)
    log.configure(settings.log_level)
    for level, line in strange_variables(os.environ):
        logger.log(level, line)
    return settings


def _rank(ctx: click.Context, name: str) -> int:
    """The smaller, the more it counts where a setting comes from."""
    source = ctx.get_parameter_source(name)
    return SOURCES.index(source) if source in SOURCES else len(SOURCES)


def _given(ctx: click.Context, name: str) -> str:
    """A setting as whoever gave it knows it: its flag, and where else it comes from, if it does."""
    flag = "--" + name.replace("_", "-")
    source = ctx.get_parameter_source(name)
    if source is ParameterSource.ENVIRONMENT:
        return f"{flag} (HYPERFLEET_{name.upper()})"
    return f"{flag} (of the --config file)" if source is ParameterSource.DEFAULT_MAP else flag


def _content(name: str, path: Path) -> str:
    flag = "--" + name.replace("_", "-")
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{flag}: {error}") from None
    if not content:
        raise click.UsageError(f"{flag}: {path} is empty")
    return content


def check_database_url(name: str, url: str) -> None:
    """Raises click.UsageError for the URL of something else than PostgreSQL. What follows the scheme is
    not repeated: a password may be in it.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if scheme and scheme[1] not in ("postgresql", "postgres"):
        raise click.UsageError(f"{name}: the scheme {scheme[1]} is not postgresql.")
