"""For all tests: the long ones begin first, so that no process is left alone with them at the end."""

from pathlib import Path

import pytest

LONG_FIRST = ("e2e", "workflows", "infra", "serving", "test_distribution.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a folder the order stays."""
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    return next((number for number, name in enumerate(LONG_FIRST) if name in path.parts), len(LONG_FIRST))
