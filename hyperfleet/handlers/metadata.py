"""The operations about the API itself."""

import json
from datetime import UTC, datetime
from pathlib import Path

from hyperfleet import __version__
from hyperfleet.engine.response import Response
from hyperfleet.handlers.response import answer
from hyperfleet.kinds import BASE, RESOURCES
from hyperfleet.times import timestamp

# The files of an image or an installed wheel date from its build; so do those of a checkout.
BUILD_TIME = timestamp(datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC))


def get_metadata() -> Response:
    """Returns the versions of the API."""
    metadata = {
        "kind": "API",
        "id": "hyperfleet",
        "href": "/api/hyperfleet",
        "version": __version__,
        "build_time": BUILD_TIME,
        "versions": [{"kind": "APIVersion", "id": "v1", "href": BASE}],
    }
    return answer(json.dumps(metadata).encode())


def get_version_metadata() -> Response:
    """Returns the collections of this version."""
    lists = {kind.segment: f"{kind.name}List" for kind in RESOURCES.values()} | {"errors": "ErrorList"}
    metadata = {
        "kind": "APIVersion",
        "id": "v1",
        "href": BASE,
        "server_version": __version__,
        "collections": [
            {"kind": kind, "id": name, "href": f"{BASE}/{name}"} for name, kind in lists.items()
        ],
    }
    return answer(json.dumps(metadata).encode())


def get_compatibility() -> Response:
    """Returns whether clients of this version are compatible, and which features there are."""
    # The last two are the names that the original has for reports and for the status made of them.
    features = ["clusters", "nodepools", "statuses", "search", "adapter_status", "status_aggregation"]
    return answer(json.dumps({"api_version": "v1", "compatible": True, "features": features}).encode())
