"""Reports as adapters send them, and what clients see of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from conftest import Api
from helpers_contract import check

Json = dict[str, Any]


def both(api: Api) -> list[Json]:
    """Creates a cluster and a node pool: everything here holds for both."""
    cluster = api.cluster()
    return [cluster, api.node_pool(cluster)]


def path(resource: Json) -> str:
    return f"/{resource['href']}/statuses"


def report(adapter: str = "dns-adapter", **members: Any) -> Json:
    return {
        "adapter": adapter,
        "observed_generation": 1,
        "conditions": [{"type": "Available", "status": "True"}],
        **members,
    }


def at(**ago: float) -> str:
    """Returns a time relative to now, as an adapter would write it."""
    return (datetime.now(UTC) + timedelta(**ago)).isoformat().replace("+00:00", "Z")


def state(api: Api, resource: Json) -> tuple[Json, Json]:
    """Returns all that a client can see of a resource and its reports."""
    return api.read(resource), check(api.get(path(resource)))
