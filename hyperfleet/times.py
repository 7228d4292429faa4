"""The clock, and how a time is written.

Every time that the service stores or shows is text of fixed width, so that times compare as text.
"""

from datetime import UTC, datetime


def timestamp(moment: datetime) -> str:
    """``2025-11-17T15:04:05.000000Z``: RFC 3339 in UTC, always with microseconds.

    Raises OverflowError for a moment whose year in UTC is not between 1 and 9999.
    """
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> str:
    """The present as :func:`timestamp` writes it."""
    return timestamp(datetime.now(UTC))
