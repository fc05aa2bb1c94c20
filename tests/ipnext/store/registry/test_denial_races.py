"""What is published while a denial is carried out."""

from contextlib import contextmanager

import pytest

from ipnext.errors import SnapshotDenied
from ipnext.platform.denials import carry_out_denials
from ipnext.platform.publication import check_denial
from tests.ipnext.store.conftest import delta_source
from tests.ipnext.store.registry.test_denials import covered, digest, serve

pytestmark = pytest.mark.trust


@pytest.fixture
def served(applied, publish):
    """Generations 1 and 2; the second one serves."""
    publish("c1", dense="a", sparse="x")
    serve(applied, "c1", 1)
    publish("c2", dense="b")
    serve(applied, "c2", 2)
    return applied


class Between:
    """A store in which something happens once, before the first unit of a model."""

    def __init__(self, store, happens):
        self._store, self._happens = store, happens

    def __getattr__(self, name):
        return getattr(self._store, name)

    @contextmanager
    def begin(self, model=None):
        if model is not None:
            happens, self._happens = self._happens, lambda: None
            happens()
        with self._store.begin(model) as unit:
            yield unit


def test_a_delta_that_is_published_while_a_denial_is_carried_out_is_covered(served):
    first = delta_source("c", parent=digest("b"))
    with served.begin("ctr") as unit:
        unit.publish("ctr", {"dense": first}, change_id="c3")
    second = delta_source("d", parent=first.manifest.digest)
    third = delta_source("e", parent=second.manifest.digest)

    def publish_second():
        with served.begin("ctr") as unit:
            check_denial(unit, second.manifest, "parts.dense")
            unit.publish("ctr", {"dense": second}, change_id="c4")

    with served.begin() as unit:
        unit.put_denial(digest("b"), reason="poisoned", denied_by="ann")
    carry_out_denials(Between(served, publish_second))
    carry_out_denials(served)
    assert covered(served) == dict.fromkeys([("dense", 2), ("dense", 3), ("dense", 4)], digest("b"))
    with served.read() as unit, pytest.raises(SnapshotDenied):
        check_denial(unit, third.manifest, "parts.dense")
    carry_out_denials(served)
    with served.read() as unit:
        assert not unit.denials_to_carry_out()
