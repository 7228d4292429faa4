"""The answers of the handlers."""

from collections.abc import Mapping
from typing import Any

import flask

from hyperfleet.etag import etag
from hyperfleet.handlers import request
from hyperfleet.lifecycle import Stored
from hyperfleet.lists import page
from hyperfleet.lists.page import Within
from hyperfleet.lists.projection import Shape

ALL = Within()


def answer(document: str, status: int = 200, headers: Mapping[str, str] | None = None) -> flask.Response:
    """A response whose body is JSON text that is finished already."""
    response = flask.Response(document, status, mimetype="application/json")
    response.headers.update(headers or {})
    return response


def empty(status: int, headers: Mapping[str, str] | None = None) -> flask.Response:
    """A response without a body."""
    response = answer("", status, headers)
    del response.headers["Content-Type"]
    return response


def shown(shape: Shape, stored: Stored, status: int = 200, location: str = "") -> flask.Response:
    """A resource, in a shape.

    :param location: where it is, when it is new
    """
    headers = {"ETag": etag(stored.version), **shape.headers}
    if location:
        headers["Location"] = location
    return answer(shape.text(stored.document), status, headers)


def read(kind: str, stored: Stored) -> flask.Response:
    """The answer to a GET of a resource: 304 for who has it already (RFC 9110, 13.1.2)."""
    shape = request.shape(kind)
    if request.knows(stored.version):
        return empty(304, {"ETag": etag(stored.version)})
    return shown(shape, stored)


def listed(kind: str, query: Mapping[str, Any], within: Within = ALL) -> flask.Response:
    """The page of a list that a request asks for."""
    shape = request.shape(kind)
    wanted, found = page.page(request.service().pool, kind, query, within)
    return answer(page.text(kind, wanted, found, shape, *request.address()), 200, shape.headers)
