"""``hyperfleet watch``: shows changes to resources as they happen."""

import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from hyperfleet.kinds import BASE
from hyperfleet.settings.values import FILE

# Seconds that a request waits for changes, and after which no response is expected. Some proxies give
# up after 30 s.
WAIT = 25
TIMEOUT = WAIT + 20
# Seconds between attempts while the service is not available, at first and at most.
FIRST, LAST = 0.5, 10.0


@click.command()
@click.option(
    "--url",
    default="http://127.0.0.1:8000",
    envvar="HYPERFLEET_URL",
    show_envvar=True,
    show_default=True,
    help="URL of the API.",
)
@click.option("--token", default="", envvar="HYPERFLEET_TOKEN", show_envvar=True, help="Bearer token.")
@click.option("--token-file", type=FILE, help="File that holds --token; read again for each request.")
@click.option("--kind", help="Only resources of this kind, such as Cluster.")
@click.option("--owner-id", help="Only what belongs to this resource.")
@click.option("--search", help="Only resources that this expression matches, as in lists.")
@click.option("--fields", help="The members to show of each resource, with --output=json.")
@click.option("--after", help="Continue from this token; without it, from now on.")
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Print each change as a line of text, or of JSON.",
)
def watch(url: str, token: str, token_file: Path | None, output: str, **query: str | None) -> None:
    """Show changes to resources as they happen, until you interrupt it.

    After a lost connection, continues where it was. If the service no longer knows that place, says so
    on standard error and continues from now. When interrupted, prints there how to continue later.
    """
    wanted = {name: value for name, value in query.items() if value is not None}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _follow(url, token, token_file, output, wanted)
    except (KeyboardInterrupt, SystemExit):
        if "after" in wanted:
            click.echo(f"To continue from here: --after {wanted['after']}", err=True)
        raise


def _follow(url: str, token: str, token_file: Path | None, output: str, wanted: dict[str, str]) -> None:
    """Prints changes; ``wanted`` holds the query's parameters, and ``after`` what was printed last."""
    # Not needed by the other commands, and slow to import.
    import requests  # noqa: PLC0415

    from hyperfleet.commands.bearer import Session  # noqa: PLC0415

    session, pause = Session(), FIRST
    # As with other commands, the URL may include the API's base path.
    service = url.rstrip("/").removesuffix(BASE)
    while True:
        if token_file:
            # While it is being rewritten, it may be empty or missing: keep the last one.
            with contextlib.suppress(OSError, UnicodeDecodeError):
                token = token_file.read_text().strip() or token
        session.show(token)
        # The first response comes at once, with the token for now.
        params = wanted | {"limit": "1000"} | ({"wait": str(WAIT)} if "after" in wanted else {})
        try:
            answer = session.get(f"{service}{BASE}/changes", params=params, timeout=TIMEOUT)
            page = answer.json()
            # A proxy in between may respond with something else.
            detail = page.get("detail") or answer.reason
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise click.ClickException(f"--url: {error}") from None
        except requests.exceptions.MissingSchema:
            raise click.ClickException("--url must begin with http:// or https://.") from None
        except (requests.RequestException, ValueError, AttributeError):
            # Includes responses that are cut off.
            pause = _wait(pause, "there is no answer")
            continue
        if answer.status_code == 410 and "after" in wanted:
            message = "What happened since then is no longer known; list again. Continuing from now."
            click.echo(message, err=True)
            del wanted["after"]
        elif answer.status_code >= 500:
            pause = _wait(pause, detail)
        elif not answer.ok:
            raise click.ClickException(detail)
        elif not ("next" in page and isinstance(page.get("items"), list)):
            pause = _wait(pause, "the server that answers is not the API")
        else:
            for item in page["items"]:
                click.echo(json.dumps(item) if output == "json" else _line(item))
            pause, wanted["after"] = FIRST, page["next"]


def _wait(pause: float, why: str) -> float:
    """Waits; returns how long to wait next time."""
    click.echo(f"{why}; trying again", err=True)
    time.sleep(pause)
    return min(2 * pause, LAST)


def _line(item: dict[str, Any]) -> str:
    by = f" by {item['by']}" if "by" in item else ""
    what = f"{item['change']:8} {item['kind']} {item['name']} ({item['id']})"
    return f"{item['time']} {what} generation {item['generation']}{by}"
