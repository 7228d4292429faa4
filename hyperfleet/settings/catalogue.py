"""Every setting, declared once: flag, environment variable, YAML key, default and help.

A setting is a field of :class:`Settings`. Its flag is ``--field-name``, its environment variable
``HYPERFLEET_FIELD_NAME`` and its YAML key ``field_name``, or nested, as ``field: {name: ...}``. A flag
overrides the environment, which overrides the file given by ``--config``, which overrides the default.
"""

import dataclasses
from pathlib import Path
from typing import Any

import click

from hyperfleet.kinds import NATIVE
from hyperfleet.settings import issuers, tenancy
from hyperfleet.settings.entities import Entity
from hyperfleet.settings.values import (
    FILE,
    AdapterNames,
    Level,
    Mappings,
    Names,
    Seconds,
    Share,
    Whole,
)

# Variables of the original that set a setting in addition to its own.
OTHER_VARIABLES = {"openapi_schema_path": "OPENAPI_SCHEMA_PATH"}


def setting(default: Any, description: str, *, filed: bool = False, **option: Any) -> Any:
    """Declares a field of :class:`Settings`: its default, its help, whether a file may hold its value,
    and further arguments for its click option.
    """
    metadata = {"help": description, "option": option, "filed": filed}
    return dataclasses.field(default=default, metadata=metadata)


def switch(default: bool, description: str) -> Any:
    """Declares a boolean setting: the bare flag turns it on, and a value can turn it on or off."""
    return setting(default, description, type=bool, is_flag=False, flag_value="true")


def file(description: str) -> Any:
    """Declares a setting that names an existing file."""
    return setting(None, description, type=FILE)


def secret(description: str) -> Any:
    """Declares a string that may be in a file instead, named by a setting with the suffix ``_file``."""
    return setting("", description, filed=True)


# The consoles, documentation and customer portal of Red Hat, which the original allows.
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

# Generated from the contract of December 2025; it rejects members that it does not know.
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

# The keys of Red Hat SSO, where anyone can get an account.
PUBLIC_KEYS = "https://sso.redhat.com/auth/realms/redhat-external/protocol/openid-connect/certs"

PORT = Whole(0, 65535)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of the service, with their defaults."""

    host: str = setting(
        "", "Address of the API. Default: 127.0.0.1 with --no-auth, otherwise all addresses."
    )
    port: int = setting(8000, "Port of the API; 0: any free port.", type=PORT)
    health_host: str = setting("", "Address of the health checks. Default: the value of --host.")
    health_port: int = setting(8083, "Port of the health checks; 0: any free port.", type=PORT)
    metrics_host: str = setting("", "Address of the metrics. Default: the value of --host.")
    metrics_port: int = setting(8080, "Port of the metrics; 0: any free port.", type=PORT)
    workers: int = setting(
        0,
        "Number of worker processes; 0: one per available processor core, at most 4, or one with the "
        "embedded database.",
        type=Whole(0, 64),
    )
    max_body_size: int = setting(
        1024 * 1024, "Maximum size of a request body, in bytes.", type=Whole(1024, 256 * 1024 * 1024)
    )
    max_header_size: int = setting(
        32 * 1024, "Maximum size of a request's headers, in bytes.", type=Whole(1024, 1024 * 1024)
    )
    read_timeout: int = setting(30, "Seconds within which a request must arrive.", type=Whole(1, 3600))
    write_timeout: int = setting(
        30,
        "Seconds after which a client that reads nothing of its response is disconnected.",
        type=Whole(1, 3600),
    )
    request_timeout: float = setting(
        10.0,
        "Seconds within which a response must begin, whatever the request waits for; otherwise 503.",
        type=Seconds(0.1, 3600),
    )
    max_requests: int = setting(
        500,
        "Maximum number of requests per process, in progress or waiting; beyond that they get 503.",
        type=Whole(1, 100_000),
    )
    max_waiting: int = setting(
        5000,
        "Maximum number of clients per process that wait for changes; beyond that they get 503.",
        type=Whole(0, 1_000_000),
    )
    cors_origins: tuple[str, ...] = setting(
        CONSOLES, "Origins whose pages may call the API, comma-separated.", type=Names()
    )
    enable_https: bool = switch(False, "Serve the API with TLS.")
    enable_health_check_https: bool = switch(False, "Serve the health checks with TLS.")
    enable_metrics_https: bool = switch(False, "Serve the metrics with TLS.")
    https_cert_file: Path | None = file("File with the certificate chain for TLS, PEM.")
    https_key_file: Path | None = file("File with the certificate's key, PEM.")
    shutdown_timeout: int = setting(
        20, "Seconds that requests in progress get to finish during shutdown.", type=Whole(0, 3600)
    )
    shutdown_delay: int = setting(
        0,
        "Seconds during shutdown in which /readyz already answers 503 but requests are still accepted.",
        type=Whole(0, 300),
    )

    no_auth: bool = switch(False, "Serve without authentication, for development.")
    enable_jwt: bool = switch(True, "Require a bearer token.")
    enable_authz: bool = switch(
        False, "Ask OCM's access review whether callers are allowed to do what they request."
    )
    any_caller: bool = switch(
        False, "Let in everyone with an account at the public issuer, that of the default keys."
    )
    jwk_cert_url: str = setting(
        PUBLIC_KEYS,
        "URL of the keys that tokens are verified with; empty for none.",
    )
    jwk_cert_ca_file: Path | None = file("File with the CA certificates for the key servers.")
    jwk_cert_file: Path | None = file("File with keys that tokens are verified with, besides the URL.")
    jwt_issuers: tuple[str, ...] = setting(
        (),
        "Issuers whose tokens are accepted, comma-separated: ISSUER for the keys above, ISSUER=URL or "
        "ISSUER=FILE for its own keys. Default: anyone who signs with the keys above.",
        type=Names(),
    )
    jwt_configs: tuple[issuers.Issuer, ...] = setting(
        (),
        "Replaces --jwt-issuers with issuers that have their own settings: a list in the file, JSON "
        "elsewhere. Omitted members default to the settings for all issuers.",
        type=Mappings(issuers.parse),
    )
    jwt_audiences: tuple[str, ...] = setting(
        (), "Audiences, comma-separated, one of which a token must name. Default: any.", type=Names()
    )
    identity_claims: tuple[str, ...] = setting(
        ("email", "username", "preferred_username", "sub"),
        "Claims that name the caller, comma-separated; the first usable one counts.",
        type=Names(),
    )
    acl_file: Path | None = file("YAML file with a list of claims and patterns that grant access.")
    audit_acl_file: Path | None = file(
        "Like --acl-file, for reading the audit. Default: those whom --enable-authz allows."
    )
    tenant_enabled: bool = switch(
        False, "Keep tenants apart by headers that a trusted gateway sets (see docs/tenants.md)."
    )
    tenant_system_header: str = setting(
        "", "Header that is true for system callers, which see all tenants and write only statuses."
    )
    tenant_dimensions: tuple[tenancy.Dimension, ...] = setting(
        (),
        "Dimensions that identify a tenant, each with header, key and required; a list in the file, "
        "JSON elsewhere.",
        type=Mappings(tenancy.parse),
    )
    ocm_base_url: str = setting("https://api.openshift.com", "URL of OCM for --enable-authz.")
    ocm_token_url: str = setting(
        "https://sso.redhat.com/auth/realms/redhat-external/protocol/openid-connect/token",
        "URL that issues the token for --enable-authz.",
    )
    ocm_client_id: str = secret("Client id for --enable-authz.")
    ocm_client_secret: str = secret("Client secret for --enable-authz.")
    ocm_ca_file: Path | None = file("File with the CA certificates for OCM.")

    database_url: str = secret("postgresql:// URL or key=value string. Default: an embedded PostgreSQL.")
    read_database_url: str = secret(
        "The same for hot standbys, one or several hosts, which serve lists, searches and reads of a "
        "resource."
    )
    max_staleness: float = setting(
        2.0,
        "Seconds that a standby may lag behind; if none is recent enough, the database itself serves.",
        type=Seconds(0.1, 3600),
    )
    db_host: str = secret("Host of the database, instead of --database-url.")
    db_port: str = secret("Port of the database.")
    db_name: str = secret("Name of the database.")
    db_user: str = secret("User of the database.")
    db_password: str = secret("Password of the database.")
    db_sslmode: str = setting(
        "",
        "How the connection is encrypted.",
        type=click.Choice(["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
    )
    db_rootcert: str = setting("", "File with the CA certificates for the database.")
    db_pool_size: int = setting(
        6, "Maximum number of database connections per process.", type=Whole(1, 1000)
    )
    db_max_connections: int = setting(
        0,
        "Maximum number of database connections of the whole service, shared by its processes; 0: "
        "limited per process only.",
        type=Whole(0, 100_000),
    )
    db_connect_timeout: int = setting(
        300,
        "Seconds to wait at startup for an unreachable database; probes are answered meanwhile.",
        type=Whole(0, 86400),
    )
    statement_timeout: float = setting(
        5.0,
        "Seconds after which a search or any other statement is ended; 0: never.",
        type=Seconds(0, 3600),
    )
    data_dir: Path | None = setting(
        None,
        "Directory of the embedded PostgreSQL. Default: hyperfleet in the user's data home.",
        type=click.Path(file_okay=False, path_type=Path),
    )

    required_adapters_cluster: tuple[str, ...] = setting(
        (),
        "Adapters that must report on a cluster, comma-separated or a JSON list. Default: all that do.",
        type=AdapterNames(),
    )
    required_adapters_nodepool: tuple[str, ...] = setting(
        (), "Adapters that must report on a node pool, comma-separated.", type=AdapterNames()
    )

    changes_retention: float = setting(
        7 * 86400.0,
        "Seconds for which changes are kept; clients that fall further behind must list again. 0: "
        "forever.",
        type=Seconds(0, 10 * 366 * 86400),
    )
    require_if_match: bool = switch(
        False, "Refuse a PATCH or DELETE that does not say which version it applies to."
    )
    history: int = setting(
        100,
        "Number of past generations kept of each resource, besides the current one; 0: none.",
        type=Whole(0, 10_000),
    )
    audit_retention: int = setting(
        365, "Days for which audit records are kept; 0: forever.", type=Whole(0, 36_500)
    )
    openapi_schema_path: str = setting(
        "", "OpenAPI document whose ClusterSpec and NodePoolSpec define what specs may contain."
    )
    schema_required: bool = switch(
        True, "Refuse to start if the document at --openapi-schema-path cannot be used."
    )

    default_fields: tuple[str, ...] = setting(
        (STRICT_CLIENT,),
        "Default members for clients whose User-Agent begins with AGENT, if they do not ask for others: "
        "AGENT=FIELDS, separated by semicolons. Default: the members that a strict client of December "
        "2025 knows.",
        type=Names(";"),
    )
    validate_responses: str = setting(
        "",
        "Which responses are checked against the contract: off, sample (one in 100 per operation, at "
        "least one a second) or all, which turns a response that violates it into an error. "
        "Default: all with the embedded database, otherwise sample.",
        type=click.Choice(["", "off", "sample", "all"]),
    )
    first_generation_metrics: bool = switch(
        False,
        "Also count requests as api_inbound_request_count and _duration.",
    )
    stuck_after: float = setting(
        600.0,
        "Seconds after which a resource that is not reconciled counts as stuck in the metrics.",
        type=Seconds(1, 7 * 86400),
    )
    slow_statement: float = setting(
        1.0,
        "Seconds after which a database statement is logged as slow; 0: never.",
        type=Seconds(0, 3600),
    )
    log_level: str = setting(
        "info",
        "Lowest severity that is logged.",
        type=Level(),
    )
    log_format: str = setting(
        "",
        "Format of log lines: json or text. Default: text on a terminal, otherwise json.",
        type=click.Choice(["", "json", "text"]),
    )
    tracing_enabled: str = setting(
        "",
        "Trace requests and statements (OpenTelemetry), and send traces to the destination set by the "
        "variables OTEL_*. Default: on if these name a destination.",
        type=click.Choice(["", "true", "false"]),
        is_flag=False,
        flag_value="true",
    )
    log_masked: tuple[str, ...] = setting(
        ("password", "passwd", "secret", "token", "authorization", "api_key", "credential"),
        "Names or parts of names, comma-separated, whose values are never logged.",
        type=Names(),
    )
    access_log: float = setting(
        1.0,
        "Share of requests that are logged, from 0 to 1; failed requests always are.",
        type=Share(0, 1),
    )

    # Too much for a flag: only the settings file can have it.
    entities: tuple[Entity, ...] = ()

    @property
    def authenticated(self) -> bool:
        """Whether callers must present a token."""
        return self.enable_jwt and not self.no_auth

    @property
    def responses_checked(self) -> str:
        """Which responses are checked against the contract: ``off``, ``sample`` or ``all``."""
        named = self.database_url or self.db_host
        return self.validate_responses or ("sample" if named else "all")

    def required_adapters(self, kind: str) -> tuple[str, ...]:
        """Returns the adapters that must report on a resource of this kind; if empty, all that do."""
        if kind in NATIVE:
            names: tuple[str, ...] = getattr(self, f"required_adapters_{kind.lower()}")
            return names
        said = (one.required_adapters for one in self.entities if one.kind == kind)
        return next(said, None) or ()


FIELDS = {field.name: field for field in dataclasses.fields(Settings) if field.metadata}

# All of them in the order of their declaration, each file after the setting that it holds.
DECLARED: dict[str, Any] = {}
for name, field in FIELDS.items():
    DECLARED[name] = field
    if field.metadata["filed"]:
        DECLARED[f"{name}_file"] = file(f"File that contains --{name.replace('_', '-')}.")
