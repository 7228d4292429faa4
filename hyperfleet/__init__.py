"""HyperFleet API: the REST data layer of a fleet of Kubernetes clusters."""

import os
from importlib import metadata
from pathlib import Path


def _version() -> str:
    try:
        return metadata.version("hyperfleet-api")
    except metadata.PackageNotFoundError:
        # A checkout that is run without being installed.
        return "0.1.0"


def _commit() -> str:
    try:
        written = Path(__file__).with_name("COMMIT").read_text(encoding="ascii").strip()
    except OSError:
        # A checkout: only builds write this file.
        written = "unknown"
    return os.environ.get("HYPERFLEET_COMMIT", written)


__version__ = _version()
__commit__ = _commit()
