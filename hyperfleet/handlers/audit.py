"""The operation on the audit: who did what, and when."""

from typing import Any

import flask

from hyperfleet.handlers.response import UNCOUNTED, listed


def get_audit(**query: Any) -> flask.Response:
    """Returns one page of the audit."""
    return listed("AuditRecord", query, UNCOUNTED)
