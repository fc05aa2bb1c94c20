"""Runs a program of the platform as the build after this one would be: each value has one field more, the schema one revision more.

python next_build.py SCRIPTS PROGRAM ARGUMENTS...   (PROGRAM: a module or a file; `migrate URL`: only migrate a database)

What is named by its digest (snapshots and their manifests) has no field more: it would be another thing.
"""

import runpy
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import RootModel
from pydantic._internal._model_construction import ModelMetaclass

ADDED = "added_by_the_next_build"
SAME = frozenset(
    {f"ipnext.model.{name}" for name in ("value", "registry", "delta", "signing", "checkpoint", "adapter")}
)
FIXED = frozenset({"Row", "DeploymentKey"})
"""Rows of plans are made by position within one process, and a key with a field more names another thing."""

REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9001", "{head}", None, None

def upgrade():
    for table in ("models", "changes", "generations", "deployments", "transitions"):
        op.add_column(table, sa.Column("{added}", sa.String(), nullable=True))

def downgrade():
    pass
"""


def extend_values() -> None:
    """From now on each class of values that is made has one field more."""
    made = ModelMetaclass.__new__

    def extended(mcs: Any, name: str, bases: Any, namespace: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        module = namespace.get("__module__", "")
        fixed = name in FIXED or not FIXED.isdisjoint(base.__name__ for base in bases)
        if module.startswith("ipnext.model.") and module not in SAME and RootModel not in bases and not fixed:
            namespace["__annotations__"] = {**namespace.get("__annotations__", {}), ADDED: str}
            namespace[ADDED] = "new"
        return made(mcs, name, bases, namespace, *arguments, **options)

    ModelMetaclass.__new__ = extended


def extend_schema(scripts: Path) -> None:
    """The migrations of this build and one that adds columns, in a directory of their own."""
    from ipnext.store import migrating  # noqa: PLC0415 - after the values are extended

    if not scripts.exists():
        head = migrating._head(migrating._scripts())
        shutil.copytree(migrating.SCRIPTS, scripts)
        (scripts / "versions" / "9001_next.py").write_text(REVISION.format(head=head, added=ADDED))
    migrating.SCRIPTS = scripts


def main(scripts: Path, program: str, *arguments: str) -> None:
    extend_values()
    extend_schema(scripts)
    if program == "migrate":
        from ipnext.store.session import Store  # noqa: PLC0415 - after the values are extended

        with closing(Store.open(arguments[0])) as store:
            store.migrate()
        return
    from ipnext.model.lifecycle import QueuedChange  # noqa: PLC0415 - after the values are extended

    assert ADDED in QueuedChange.model_fields, "this would be the same build"
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
