"""Entity tags: which state of a resource a client knows (RFC 9110, 8.8.3 and 13.1)."""

from typing import NamedTuple

from werkzeug.datastructures import ETags

from hyperfleet.errors import CHANGED_SINCE, UNCONDITIONAL, Problem


def etag(version: int) -> str:
    """The entity tag of a resource: strong, since each write raises the version."""
    return f'"{version}"'


def weak(tag: str) -> str:
    """The entity tag of a page: weak, since it is the same whether it is compressed or not."""
    return f'W/"{tag}"'


class Precondition(NamedTuple):
    """Which version a change is meant for.

    :param tags: of ``If-Match``; None: the request does not say
    :param required: whether it must say so
    """

    tags: ETags | None
    required: bool

    def check(self, version: int) -> None:
        """Raises Problem unless the change is meant for this version."""
        if self.tags is None:
            if self.required:
                raise Problem(UNCONDITIONAL)
        # Weak tags never match here: a weak comparison could overwrite a change that it overlooks.
        elif not self.tags.contains(str(version)):
            raise Problem(CHANGED_SINCE, headers={"ETag": etag(version)})
