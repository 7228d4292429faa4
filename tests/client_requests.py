"""What the tests of clients send."""

from typing import Any

MERGE = {"Content-Type": "application/merge-patch+json"}


def statuses(resource: dict[str, Any]) -> str:
    return f"/{resource['href'].removeprefix('/api/hyperfleet/v1/')}/statuses"


REPORT_BODY = {
    "adapter": "dns",
    "observed_generation": 1,
    "conditions": [{"type": "Available", "status": "True"}],
}
