"""The catalogue of errors."""

import json
from typing import Any

import flask

from hyperfleet import listing
from hyperfleet.errors import CATALOGUE, NOT_FOUND, Problem
from hyperfleet.resource import answer

DOCUMENTS = {code: json.dumps(entry.document()) for code, entry in sorted(CATALOGUE.items())}


def get_errors(**query: Any) -> flask.Response:
    """One page of the catalogue."""
    number, size = listing.page_of(query)
    documents = list(DOCUMENTS.values())
    page = documents[(number - 1) * size : number * size]
    return answer(listing.render("Error", number, len(documents), page))


def get_error_by_id(error_id: str) -> flask.Response:
    """An entry of the catalogue."""
    if error_id not in DOCUMENTS:
        raise Problem(NOT_FOUND, f"There is no error with the id '{error_id[:100]}'.")
    return answer(DOCUMENTS[error_id])
