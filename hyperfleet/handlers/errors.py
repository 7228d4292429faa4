"""The operations on the catalogue of errors."""

import json
from typing import Any

from hyperfleet.engine.response import Response
from hyperfleet.errors import CATALOGUE, NOT_FOUND, Problem
from hyperfleet.handlers.response import answer
from hyperfleet.lists import body, page

DOCUMENTS = {code: json.dumps(entry.document()).encode() for code, entry in sorted(CATALOGUE.items())}


def get_errors(**query: Any) -> Response:
    """Returns one page of the catalogue."""
    number, size = page.number_and_size(query)
    documents = list(DOCUMENTS.values())
    shown = documents[(number - 1) * size : number * size]
    return answer(body.render("Error", number, len(documents), shown))


def get_error_by_id(error_id: str) -> Response:
    """Returns an entry of the catalogue. Raises Problem if there is none."""
    if error_id not in DOCUMENTS:
        raise Problem(NOT_FOUND, f"There is no error with the id '{error_id[:100]}'.")
    return answer(DOCUMENTS[error_id])
