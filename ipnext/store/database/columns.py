"""Column types that behave alike on SQLite and PostgreSQL."""

import zlib
from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, LargeBinary, Text
from sqlalchemy.types import TypeDecorator

LARGEST_INTEGER = 2**63 - 1
"""Largest value in a column of either engine."""

PACKING = 6
"""Compression level of zlib."""


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: aware when written, UTC when read (SQLite itself stores no time zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone: ValueError."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = f"{value!r} has no time zone; use an aware datetime such as datetime.now(UTC)"
            raise ValueError(msg)
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the stored time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class SafeText(TypeDecorator[str]):
    """Text of any origin. Characters that a UTF-8 column cannot store (NUL, lone surrogates) become U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - the base's form
        """Replace the characters that PostgreSQL would refuse, on both engines alike."""
        return None if value is None else storable(value)


class WholeNumber(TypeDecorator[int]):
    """A 64-bit integer. A larger number in a query matches nothing instead of failing in the driver."""

    impl = BigInteger().with_variant(Integer(), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - the base's form
        """Clamp to the range of the column."""
        return None if value is None else max(-LARGEST_INTEGER, min(LARGEST_INTEGER, value))


class PackedText(TypeDecorator[str]):
    """Long text, compressed: a plan of 10,000 models is some ten megabytes of JSON, and a twentieth of that packed."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002 - the base's form
        """Compress; equal texts give equal bytes."""
        return None if value is None else zlib.compress(storable(value).encode(), PACKING)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Decompress."""
        return None if value is None else zlib.decompress(value).decode()


def storable(text: str) -> str:
    """Return the text with U+FFFD for each NUL and each lone surrogate."""
    return text.replace("\0", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")
