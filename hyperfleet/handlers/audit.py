"""Who did what when."""

from typing import Any

import flask

from hyperfleet.handlers.response import UNCOUNTED, listed


def get_audit(**query: Any) -> flask.Response:
    """One page of the audit."""
    return listed("AuditRecord", query, UNCOUNTED)
