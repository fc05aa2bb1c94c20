"""Times as objects have them."""

from datetime import UTC, datetime


def time_text() -> str:
    """Return the time as objects have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
