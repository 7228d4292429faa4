"""Where settings come from: flags, environment variables, a YAML file, and files with one value."""

import contextlib
import dataclasses
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import psycopg
from click.core import ParameterSource
from psycopg.conninfo import conninfo_to_dict

from hyperfleet import kinds
from hyperfleet.database import connection
from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.kinds import NATIVE
from hyperfleet.nearest import hint
from hyperfleet.observe import log
from hyperfleet.settings import declared, synonyms, tenancy
from hyperfleet.settings.catalogue import DECLARED, FIELDS, OTHER_VARIABLES, Settings
from hyperfleet.settings.file import read_file
from hyperfleet.settings.values import FILE, Names

logger = logging.getLogger(__name__)

# Where both the original and this service look for the settings file.
PLACE = Path("/etc/hyperfleet/config.yaml")
# The context's keys for the file that is used, and for lines for the log.
FROM, TOLD = "hyperfleet.file", "hyperfleet.told"
# The context's key for the kinds that the file declares.
ENTITIES = "hyperfleet.entities"


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Reports invalid settings as errors of the command."""
    try:
        yield
    except StartError as error:
        raise click.ClickException(str(error)) from None
    except ConfigurationError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def _use_file(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is None and PLACE.is_file():
        path = PLACE
    if path is not None:
        with _reported():
            read = read_file(path)
        ctx.meta.setdefault(TOLD, []).extend(read.told)
        ctx.default_map, ctx.meta[FROM], ctx.meta[ENTITIES] = read.values, path, read.entities


# Variables that Kubernetes sets in every container for services called hyperfleet or hyperfleet-*:
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
LINK = re.compile(
    r"HYPERFLEET_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
FOR_TESTS = "HYPERFLEET_TEST_DATABASE_URL"


def _is_link(name: str, value: str) -> bool:
    """Returns whether Kubernetes has set a variable, for a service with a name like a setting's."""
    address = name.endswith("_PORT") and LINK_VALUE.match(value)
    return name.startswith("HYPERFLEET_") and bool(address or LINK.fullmatch(name))


def strange_variables(environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """Returns the variables that look like settings but are not, as levels and lines for the log."""
    known = [name.upper() for name in DECLARED] + ["CONFIG", "TOKEN", "URL", "COMMIT", "FROM_DATABASE"]
    lines = []
    for variable in sorted(environment):
        if not variable.upper().startswith("HYPERFLEET_") or variable == FOR_TESTS:
            continue
        name = variable[len("HYPERFLEET_") :]
        if _is_link(variable, environment[variable]):
            if name in known:
                line = f"{variable} is ignored: Kubernetes has set it, for a service of that name"
                lines.append((logging.INFO, line))
        elif variable in synonyms.BY_VARIABLE:
            synonym = synonyms.BY_VARIABLE[variable]
            if not synonym.setting:
                lines.append((logging.INFO, f"{variable} has no effect here: {synonym.why}"))
        elif name not in known or variable != variable.upper():
            other = hint(name, known, "HYPERFLEET_")
            lines.append((logging.WARNING, f"{variable} is ignored: there is no such setting{other}"))
    return lines


class _Option(click.Option):
    """An option that ignores variables set by Kubernetes.

    :param emptied: whether an empty variable empties it; click treats these as not set
    """

    def __init__(self, *args: Any, emptied: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.emptied = emptied

    def variable(self) -> str:
        """Returns the variable that provides the value, or "" if none does."""
        for name in self.envvar or ():
            value = os.environ.get(name)
            if value is not None and (value or self.emptied) and not _is_link(name, value):
                return name
        return ""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return os.environ.get(self.variable())

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Returns where the invalid value came from, rather than where it could have come from."""
        return _given(ctx, self.name or "") if ctx else super().get_error_hint(ctx)


def _option(name: str, field: "dataclasses.Field[Any]") -> click.Option:
    variables = ["HYPERFLEET_" + name.upper()]
    if name in OTHER_VARIABLES:
        variables.append(OTHER_VARIABLES[name])
    variables += synonyms.variables(name)
    kind = field.metadata["option"].get("type")
    return _Option(
        ["--" + name.replace("_", "-")],
        # An option with a default that somebody may want to turn off.
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
    """Adds options for settings and ``--config`` to a command, and reports invalid ones as its errors.

    :param only: prefixes of the names of the settings; without any, all are added
    """

    def add(command: click.Command) -> click.Command:
        assert command.callback is not None
        command.callback = _reported()(command.callback)
        command.parse_args = _translating(command)  # type: ignore[method-assign, assignment]
        command.params.append(_config())
        command.params += [
            _option(name, field) for name, field in DECLARED.items() if not only or name.startswith(only)
        ]
        return command

    return add


def _translating(command: click.Command) -> Callable[[click.Context, list[str]], list[str]]:
    """Returns a command's parser, which first translates the original's arguments."""
    parse = command.parse_args

    def translated(ctx: click.Context, arguments: list[str]) -> list[str]:
        known = {
            flag: not option.is_flag and option._flag_needs_value is False
            for option in command.params
            if isinstance(option, click.Option)
            for flag in option.opts
        }
        with _reported():
            given, lines = synonyms.translated(arguments, known)
        ctx.meta.setdefault(TOLD, []).extend(lines)
        return parse(ctx, given)

    return translated


def _config() -> click.Option:
    return click.Option(
        ["--config"],
        type=FILE,
        is_eager=True,
        expose_value=False,
        callback=_use_file,
        envvar="HYPERFLEET_CONFIG",
        show_envvar=True,
        help="YAML file with settings.",
    )


def from_options(values: Mapping[str, Any]) -> Settings:
    """Returns the current command's settings, including the content of ``*_file`` settings.

    Also configures the log, logs variables that are not settings, and registers the declared kinds.
    Raises ConfigurationError for a file that is empty or unreadable, and for contradictory settings.
    """
    ctx = click.get_current_context()
    chosen = {name: value_of(name, values) for name in FIELDS if name in values}
    given = {name: _given(ctx, _option_of(name, values)) for name in chosen}
    for name in ("database_url", "read_database_url"):
        if chosen.get(name):
            chosen[name] = database_url(given[name], chosen[name])
    if chosen.get("database_url") and chosen.get("db_host"):
        raise ConfigurationError(
            f"{given['database_url']} and {given['db_host']} both name a database: give only one."
        )
    if chosen.get("jwt_configs") and chosen.get("jwt_issuers"):
        both = f"{given['jwt_configs']} and {given['jwt_issuers']}"
        raise ConfigurationError(f"{both} both name issuers: give only one.")
    if not _are_ports(chosen.get("db_port", "")):
        raise ConfigurationError(f"{given['db_port']} must be a port from 1 to 65535.")
    settings = Settings(**_of_entities(ctx, chosen, given), entities=ctx.meta.get(ENTITIES, ()))
    _set_up_log(ctx, settings)
    kinds.declare(declared.kinds_of(settings.entities))
    return settings


def value_of(name: str, values: Mapping[str, Any]) -> Any:
    """Returns the value of an option, which may be in the file that another names: that with the suffix
    ``_file``.

    Raises ConfigurationError if both are given in the same place, and as :func:`content` does.
    """
    option = _option_of(name, values)
    if option == name:
        return values[name]
    return content(_given(click.get_current_context(), option), values[option])


def _option_of(name: str, values: Mapping[str, Any]) -> str:
    """Returns the name of the option that a value comes from: its own, or that of the file with it."""
    ctx, filed = click.get_current_context(), f"{name}_file"
    if values.get(filed) is None:
        return name
    rank, other = _rank(ctx, filed), _rank(ctx, name)
    if rank == other and values[name]:
        both = f"{_given(ctx, name)} or {_given(ctx, filed)}"
        raise ConfigurationError(f"Give either {both}, not both.")
    return filed if rank <= other else name


def _of_entities(ctx: click.Context, chosen: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Adds the file's settings of kinds. Raises ConfigurationError if one is set in two places."""
    for entity in ctx.meta.get(ENTITIES, ()):
        name = f"required_adapters_{entity.kind.lower()}"
        if entity.required_adapters is None or name not in chosen:
            continue
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise ConfigurationError(
                f"Give either {given[name]} or required_adapters of {entity.kind}, under entities in "
                f"{ctx.meta[FROM]}, not both."
            )
        chosen[name] = entity.required_adapters
    return chosen


def check(chosen: Settings) -> None:
    """Raises ConfigurationError for settings that contradict each other."""
    if chosen.read_database_url and not chosen.database_url and not chosen.db_host:
        raise ConfigurationError(
            "--read-database-url names standbys: name their primary with --database-url."
        )
    if chosen.enable_authz and not chosen.enable_jwt and not chosen.no_auth:
        raise ConfigurationError("--enable-authz needs verified callers: remove --enable-jwt=false.")
    if chosen.tenant_enabled:
        for fault in tenancy.contradictions(chosen.tenant_system_header, chosen.tenant_dimensions):
            raise ConfigurationError(fault)


def sources() -> dict[str, str]:
    """Returns where each of the command's settings comes from, by name.

    That is a flag, a variable, a file, or "default".
    """
    ctx = click.get_current_context()
    found = {name: _source(ctx, _option_of(name, ctx.params)) for name in FIELDS}
    for entity in ctx.meta.get(ENTITIES, ()):
        found["entities"] = str(ctx.meta[FROM])
        if entity.required_adapters is not None and entity.kind in NATIVE:
            found[f"required_adapters_{entity.kind.lower()}"] = str(ctx.meta[FROM])
    return {"entities": "default", **found}


def _source(ctx: click.Context, name: str) -> str:
    where = ctx.get_parameter_source(name)
    if where is ParameterSource.COMMANDLINE:
        return "--" + name.replace("_", "-")
    if where is ParameterSource.ENVIRONMENT:
        option = next(one for one in ctx.command.params if one.name == name)
        assert isinstance(option, _Option)
        return option.variable()
    return str(ctx.meta[FROM]) if where is ParameterSource.DEFAULT_MAP else "default"


def _set_up_log(ctx: click.Context, settings: Settings) -> None:
    if ctx.command.name == "serve":
        log.configure(settings.log_level, settings.log_format, settings.log_masked, sys.stdout)
    else:
        log.configure(settings.log_level)
    for line in ctx.meta.get(TOLD, ()):
        logger.info(line)
    for level, line in strange_variables(os.environ):
        logger.log(level, line)


def _rank(ctx: click.Context, name: str) -> ParameterSource:
    """Returns an option's source; lower ones take precedence."""
    source = ctx.get_parameter_source(name)
    assert source is not None
    return source


def _given(ctx: click.Context, name: str) -> str:
    """Returns a setting as the user knows it: its flag, and where else it comes from, if it does."""
    flag = "--" + name.replace("_", "-")
    source = ctx.get_parameter_source(name)
    if source is ParameterSource.ENVIRONMENT:
        return f"{flag} ({_source(ctx, name)})"
    return f"{flag} (of the --config file)" if source is ParameterSource.DEFAULT_MAP else flag


def content(given: str, path: Path) -> str:
    """Returns the content of a file that holds a setting's value; ``given`` names the file's setting.

    Raises ConfigurationError if the file is empty or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{given}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{given}: {path} is not UTF-8") from None
    if not text:
        raise ConfigurationError(f"{given}: {path} is empty")
    return text


def database_url(given: str, url: str) -> str:
    """Returns a database's connection string in libpq's form; ``given`` is the name of the setting.

    Raises ConfigurationError if it is invalid. The error does not repeat it, since any part may contain
    a password, even the one that libpq would take for a host.
    """
    url = url.strip()
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.:-]*)://", url)
    if scheme and scheme[1].lower() not in ("postgresql", "postgres"):
        raise ConfigurationError(f"{given}: the scheme {scheme[1]} is not postgresql.")
    if scheme:
        url = scheme[0].lower() + url[len(scheme[0]) :]
    elif not re.match(r"\w+\s*=", url):
        raise ConfigurationError(
            f"{given} must be a URL such as postgresql://USER:PASSWORD@HOST:PORT/NAME, or pairs such as "
            "host=HOST dbname=NAME."
        )
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        told = f"{given} is not understood: {connection.reason(error)}.{ENCODE}"
        raise ConfigurationError(told) from None
    ports = str(parts.get("port") or "").split(",")
    if scheme and (
        any("@" in str(parts.get(name, "")) for name in ("host", "dbname"))
        or not all(port.isdigit() for port in ports if port)
    ):
        raise ConfigurationError(f"{given} is not understood.{ENCODE}")
    if not _are_ports(",".join(ports)):
        raise ConfigurationError(f"{given} must have a port from 1 to 65535.")
    counts = {len(str(parts[name]).split(",")) for name in ("host", "hostaddr") if parts.get(name)}
    if len(counts | ({len(ports)} - {1})) > 1:
        raise ConfigurationError(f"{given} must have as many hosts as it has addresses and ports.")
    try:
        int(float(str(parts.get("connect_timeout", 0))))
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{given}: connect_timeout must be a number of seconds.") from None
    return url


def _are_ports(text: str) -> bool:
    """Returns whether this is a port, or one port for each of several hosts, as in libpq."""
    given = filter(None, text.split(","))
    return all(one.isascii() and one.isdigit() and 0 < int(one[:9]) < 65536 for one in given)


ENCODE = (
    " In a URL, percent-encode each character of a user or password that is not a letter or digit: "
    "%40 for @, %2F for /, %3A for :, %23 for #, %3F for ?, %25 for %."
)
