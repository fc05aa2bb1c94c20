"""Tables about the database itself: its schema, and the namespace that runs its changes."""

from datetime import datetime

from ipnext.store.tables.row import Row, number_field, text_field, time_field


class WorkflowNamespaceRow(Row, table=True):
    """The Temporal namespace that runs the changes of this database (id 1)."""

    __tablename__ = "workflow_namespace"

    id: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    namespace_id: str = text_field()
    name: str = text_field()
    address: str = text_field()
    created_at: datetime = time_field()


class SchemaCompatRow(Row, table=True):
    """The version of the tables, and the oldest version whose builds can use them (id 1).

    Written by migrations only.
    """

    __tablename__ = "schema_compat"

    id: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    version: str = text_field()
    min_reader: str = text_field()
