"""The base of all rows, their metadata, and their columns."""

from typing import Any, ClassVar

from sqlalchemy import ForeignKeyConstraint, MetaData
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from ipnext.store.database.columns import PackedText, SafeText, UtcDateTime, WholeNumber

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class Row(SQLModel, registry=registry(metadata=METADATA)):
    """Base of all rows, with a separate metadata instead of sqlmodel's process-wide one."""

    __tablename__: ClassVar[Any]


def text_field(**options: Any) -> Any:
    """Make a column of text. `options` are those of `Field`, here and below."""
    return Field(sa_type=SafeText, **options)


def packed_field(**options: Any) -> Any:
    """Make a column of compressed text."""
    return Field(sa_type=PackedText, **options)


def number_field(**options: Any) -> Any:
    """Make a column of whole numbers."""
    return Field(sa_type=WholeNumber, **options)


def time_field(**options: Any) -> Any:
    """Make a column of times in UTC."""
    return Field(sa_type=UtcDateTime, **options)


def ordinal_field() -> Any:
    """Make a primary key that the database numbers in the order of recording."""
    return Field(default=None, primary_key=True, sa_type=WholeNumber, sa_column_kwargs={"autoincrement": True})


def model_key() -> ForeignKeyConstraint:
    """Make the constraint that the column `model` names a row of `models`."""
    return ForeignKeyConstraint(["model"], ["models.name"])
