"""``hyperfleet schema check``: checks a provider's document, and stored specs against it."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import click
import psycopg
import requests

from hyperfleet.commands import options
from hyperfleet.commands.bearer import Session
from hyperfleet.contract.faults import faults
from hyperfleet.contract.provider_document import BrokenDocument, Document, read
from hyperfleet.database import connection, embedded
from hyperfleet.kinds import BASE, NATIVE, RESOURCES, PerKind
from hyperfleet.settings.catalogue import Settings

COUNT = PerKind("SELECT count(*) FROM {table} WHERE true {only}")
STORED = PerKind("SELECT id::text, name, spec FROM {table} WHERE true {only} ORDER BY id")

BATCH = 500
# The most items per page that some versions of the original allow.
FEW = 100
# Seconds that a page from a service may take.
TIMEOUT = 60
# How many resources of a kind are shown, and how many faults of each.
SHOWN = 20
FAULTS = 5


class Stored(NamedTuple):
    """A stored resource."""

    id: str
    name: str
    spec: Any


# A function that returns how many resources of a kind are stored, and each of them.
Source: TypeAlias = Callable[[str], tuple[int, Iterator[Stored]]]


@click.group(name="schema")
def schema_group() -> None:
    """Work with the provider's schemas."""


@options.options("database_", "db_", "data_dir", "log_level")
@schema_group.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against",
    default="",
    metavar="URL|DATABASE",
    help="Check the stored specs too: http(s):// address of a service, connection string of a "
    "database, or 'database' for the one that the settings name.",
)
@click.option(
    "--token",
    default="",
    envvar="HYPERFLEET_TOKEN",
    show_envvar=True,
    help="Bearer token for a service.",
)
def check(file: Path, against: str, token: str, **values: Any) -> None:
    """Check the provider's OpenAPI document FILE before it is rolled out.

    Reports what is wrong with it and, with --against, which stored specs it would refuse. Exits with 1
    in either case.
    """
    chosen = options.from_options(values)
    try:
        document = read(file)
    except BrokenDocument as error:
        raise click.ClickException(
            f"{file} cannot be used:\n" + "\n".join(f"  {line}" for line in error.faults)
        ) from None
    click.echo(f"{file}: OpenAPI {document.version}, {len(document.schemas)} schemas in use")
    for kind in RESOURCES.values():
        state = "ok" if kind.name in document.validators else "missing: such specs are not validated"
        click.echo(f"  {kind.spec:12}  {state}")
    for line in document.warnings:
        click.echo(f"  warning: {line}")
    if not against:
        return
    try:
        with contextlib.ExitStack() as stack:
            source = _source(against, token, chosen, stack)
            broken = [_report(kind, document, *source(kind)) for kind in document.validators]
    except psycopg.errors.UndefinedTable:
        raise click.ClickException(
            "The database cannot be read: it lacks migrations or belongs to another service."
        ) from None
    except psycopg.Error as error:
        told = f"The database cannot be read: {connection.reason(error)}"
        raise click.ClickException(told) from None
    except (requests.RequestException, LookupError, ValueError) as error:
        raise click.ClickException(f"The service cannot be read: {error}") from None
    if any(broken):
        raise click.exceptions.Exit(1)


def _report(kind: str, document: Document, total: int, stored: Iterator[Stored]) -> int:
    """Prints how many specs would break, and the first ones; returns how many."""
    count = broken = 0
    lines = []
    label = f"Checking {RESOURCES[kind].noun}s"
    with click.progressbar(stored, length=total, label=label, file=sys.stderr) as progress:
        for one in progress:
            count += 1
            found = list(faults(document.validators[kind], one.spec, ["spec"]))
            broken += bool(found)
            if not found or broken > SHOWN:
                continue
            lines.append(f"  {one.name} ({one.id})")
            lines += [f"    {fault['field']}: {fault['message']}" for fault in found[:FAULTS]]
            if len(found) > FAULTS:
                lines.append(f"    and {len(found) - FAULTS} more")
    if broken > SHOWN:
        lines.append(f"  and {broken - SHOWN} more")
    click.echo(f"{RESOURCES[kind].noun.capitalize()}s: {broken} of {count} stored specs would break")
    for line in lines:
        click.echo(line)
    return broken


def _source(against: str, token: str, chosen: Settings, stack: contextlib.ExitStack) -> Source:
    if against.startswith(("http://", "https://")):
        return _from_service(against, token, stack)
    if against != "database":
        return _from_database(options.database_url("--against", against), stack)
    conninfo, folder = embedded.place(chosen)
    if not conninfo:
        # Someone who asks what would break must not get a new database for a misspelt folder.
        if not embedded.made(folder):
            raise click.ClickException(f"There is no database in {folder}; the settings name no other.")
        conninfo = stack.enter_context(embedded.running(folder))
    return _from_database(conninfo, stack)


def _from_database(conninfo: str, stack: contextlib.ExitStack) -> Source:
    """Reads a snapshot of a database, in batches."""
    conn = stack.enter_context(connection.connect(conninfo))
    conn.autocommit = False
    conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    conn.read_only = True

    def stored(kind: str) -> Iterator[Stored]:
        with conn.cursor(name="stored") as cursor:
            cursor.itersize = BATCH
            cursor.execute(STORED[kind])
            yield from map(Stored._make, cursor)

    def source(kind: str) -> tuple[int, Iterator[Stored]]:
        row = conn.execute(COUNT[kind]).fetchone()
        assert row is not None
        return row[0], stored(kind)

    return source


def _from_service(url: str, token: str, stack: contextlib.ExitStack) -> Source:
    """Reads from a service page by page; its URL may include the API's base path.

    Follows links: pages with numbers, which is all that an original has, shift while resources are
    created and removed.
    """
    session = stack.enter_context(Session(token))
    service = url.rstrip("/").removesuffix(BASE)

    def page(link: str) -> dict[str, Any]:
        if not link.startswith("/"):
            # Appended to the URL, it could turn it into another one.
            raise ValueError(f"it links to somewhere else: {link[:100]}")
        response = session.get(service + link, timeout=TIMEOUT)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        if not _is_list(answer):
            raise ValueError("it does not answer like the HyperFleet API.")
        return answer

    def stored(path: str, answer: dict[str, Any]) -> Iterator[Stored]:
        given, linked, wanted = set[str](), bool(answer.get("next")), answer["total"]
        for number in itertools.count(2):
            new = {item["id"]: item for item in answer["items"] if item["id"] not in given}
            given |= new.keys()
            for item in new.values():
                yield Stored(item["id"], item["name"], item["spec"])
            # What is created in the meantime need not be shown.
            wanted = min(wanted, answer["total"])
            if answer.get("next"):
                answer = page(answer["next"])
            elif linked or len(given) >= wanted:
                return
            elif new:
                answer = page(f"{path}&page={number}")
            else:
                raise ValueError(f"it shows {len(given)} items of {wanted} at {path}.")

    def begun(listed: str) -> tuple[str, dict[str, Any]]:
        path = f"{listed}&pageSize={BATCH}"
        try:
            return path, page(path)
        except requests.HTTPError as error:
            if error.response.status_code != HTTPStatus.BAD_REQUEST:
                raise
        path = f"{listed}&pageSize={FEW}"
        return path, page(path)

    def source(kind: str) -> tuple[int, Iterator[Stored]]:
        try:
            path, first = begun(f"{BASE}/{RESOURCES[kind].segment}?fields=id,name,spec")
        except requests.HTTPError as error:
            # A declared kind that is rolled out together with its schema is not served yet.
            if kind in NATIVE or error.response.status_code != HTTPStatus.NOT_FOUND:
                raise
            return 0, iter(())
        return first["total"], stored(path, first)

    return source


def _is_list(answer: Any) -> bool:
    """Returns whether a response is a list as the API returns it, with the requested members."""
    if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
        return False
    if not isinstance(answer.get("total"), int) or not isinstance(answer.get("next") or "", str):
        return False
    wanted = {"id", "name", "spec"}
    items = [item for item in answer["items"] if isinstance(item, dict) and wanted <= item.keys()]
    return len(items) == len(answer["items"]) and all(isinstance(item["id"], str) for item in items)
