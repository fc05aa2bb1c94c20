"""The world of the guard's tests."""

import pytest

from tests.serving.access.world import World


@pytest.fixture
def world():
    return World()
