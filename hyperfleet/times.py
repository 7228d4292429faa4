"""The clock, and times as text.

All times that the service stores or shows have a fixed width, so that they compare as text.
"""

from datetime import UTC, datetime


def timestamp(moment: datetime) -> str:
    """Formats a time as in ``2025-11-17T15:04:05.000000Z``: RFC 3339 in UTC, always with microseconds.

    Raises OverflowError if its year in UTC is not between 1 and 9999.
    """
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> str:
    """Returns the current time as :func:`timestamp` writes it."""
    return timestamp(datetime.now(UTC))
