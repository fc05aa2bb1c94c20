"""The tables. A row never leaves the store: the repository turns it into a record or a model value.

Documents (manifests, plans, transitions, ...) are canonical JSON text: equal values have equal bytes on both engines.
The modules are the packages of the store. All are imported here, so that `row.METADATA` has every table.
"""

from ipnext.store.tables import access, changes, database, planning, registry

__all__ = ["access", "changes", "database", "planning", "registry"]
