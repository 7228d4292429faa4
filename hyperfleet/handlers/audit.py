"""The operation on the audit: who did what, and when."""

from typing import Any

from hyperfleet.engine.response import Response
from hyperfleet.handlers.response import UNCOUNTED, listed


def get_audit(**query: Any) -> Response:
    """Returns one page of the audit."""
    return listed("AuditRecord", query, UNCOUNTED)
