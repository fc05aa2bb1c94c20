"""For all tests: the long ones begin first, so that no process is left alone with them at the end; one database to copy."""

from pathlib import Path

import pytest

from ipnext.store.session import Store

LONG_FIRST = ("e2e", "workflows", "infra", "serving", "test_distribution.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a folder the order stays."""
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    return next((number for number, name in enumerate(LONG_FIRST) if name in path.parts), len(LONG_FIRST))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with all tables: each test gets a copy, which is quicker than to migrate."""
    file = tmp_path_factory.mktemp("migrated") / "ipnext.db"
    store = Store.open(f"sqlite:///{file}")
    store.migrate()
    store.close()
    return file
