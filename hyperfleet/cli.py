"""The command line: the program ``hyperfleet`` and its commands."""

import os
import signal
import sys
import warnings

import click

from hyperfleet import __commit__, __version__
from hyperfleet.commands.config import config
from hyperfleet.commands.importing import import_
from hyperfleet.commands.migrate import migrate
from hyperfleet.commands.schema import schema_group
from hyperfleet.commands.serve import serve
from hyperfleet.commands.token import token
from hyperfleet.commands.watch import watch


@click.version_option(__version__, message="%(version)s")
@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """HyperFleet API: the REST data layer of a fleet of Kubernetes clusters."""
    _complete_streams()
    if not sys.warnoptions:
        # Libraries address warnings to their developers; operators can do nothing about them.
        warnings.simplefilter("ignore")
    if os.getpid() == 1:
        # As the first process of a container, it would not get signals without a handler.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _complete_streams() -> None:
    """Replaces closed standard streams with /dev/null.

    Otherwise a file or a connection could get the stream's number, and what is written to the stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 (as long as the process lives)


@main.command()
def version() -> None:
    """Print the version, and the commit that it was built from."""
    click.echo(f"{__version__} (commit {__commit__})")


for command in (serve, migrate, import_, schema_group, config, token, watch):
    main.add_command(command)


if __name__ == "__main__":
    main()
