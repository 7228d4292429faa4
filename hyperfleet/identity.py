"""Who the caller is."""

SYSTEM = "system@hyperfleet.local"


def caller() -> str:
    """The identity that a write is recorded under."""
    return SYSTEM
