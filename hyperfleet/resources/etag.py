"""Entity tags, which tell the version of a resource that a client knows (RFC 9110, 8.8.3 and 13.1)."""

from typing import NamedTuple

from werkzeug.datastructures import ETags

from hyperfleet.errors import CHANGED_SINCE, UNCONDITIONAL, Problem

MADE_WEAK = (
    "The tag in If-Match is weak (W/), so it never matches, although the resource has not changed. A "
    "proxy that compresses responses makes tags weak: read the resource with Accept-Encoding: identity."
)


def etag(version: int) -> str:
    """Returns a resource's entity tag; it is strong, since each write raises the version."""
    return f'"{version}"'


def weak(tag: str) -> str:
    """Returns a page's entity tag; it is weak, since it is the same with and without compression."""
    return f'W/"{tag}"'


class Precondition(NamedTuple):
    """The version that a change is meant for.

    :param tags: those of ``If-Match``; None if the request has no such header
    :param required: whether the request must have one
    """

    tags: ETags | None
    required: bool

    def allows(self, version: int) -> bool:
        """Returns whether the change is meant for this version, or for any."""
        # Weak tags never match: with weak comparison, a change could overwrite another unnoticed.
        return self.tags is None or self.tags.contains(str(version))

    def check(self, version: int) -> None:
        """Raises Problem if the change is meant for another version, or lacks a required tag."""
        if self.tags is None and self.required:
            raise Problem(UNCONDITIONAL)
        if self.tags is not None and not self.allows(version):
            # A weak tag of the current version comes from a proxy: reading again would give the same.
            detail = MADE_WEAK if self.tags.contains_weak(str(version)) else ""
            raise Problem(CHANGED_SINCE, detail, headers={"ETag": etag(version)})
