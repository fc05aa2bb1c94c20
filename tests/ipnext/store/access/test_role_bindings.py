"""Roles of people and groups, on both engines."""

from datetime import UTC, datetime

import pytest

from ipnext.access.keys import draw_key
from ipnext.errors import NotFound
from ipnext.model.access.rights import Grant, Role
from ipnext.model.access.roles import RoleBinding


def binding(subject, role=Role.VIEWER, **grant):
    return RoleBinding(
        id=draw_key().id,
        subject=subject,
        grant=Grant(role=role, **grant),
        created_at=datetime.now(UTC),
        created_by="key admin",
    )


@pytest.fixture
def bind(store):
    def bind(*given):
        with store.begin() as unit:
            return [unit.bind_role(each) for each in given]

    return bind


def test_a_person_has_the_grants_of_name_id_and_groups_each_once(store, bind):
    bind(
        binding("group:a", Role.PUBLISHER, owner="search"),
        binding("group:b", Role.PUBLISHER, owner="search"),
        binding("user:ann", Role.OPERATOR, region="eu"),
        binding("sub:1", Role.ADMIN),
        binding("user:bob", Role.ADMIN, owner="ads"),
    )
    with store.read() as unit:
        assert unit.grants_of(("user:ann", "sub:1", "group:a", "group:b", "group:c")) == (
            Grant(role=Role.ADMIN),
            Grant(role=Role.OPERATOR, region="eu"),
            Grant(role=Role.PUBLISHER, owner="search"),
        )
        assert unit.grants_of(("user:Ann", "group:ann", "sub:ann", "user:%", "user:ann ")) == ()
        assert unit.grants_of(()) == ()
        assert len(unit.grants_of([f"group:{number}" for number in range(2000)] + ["user:bob"])) == 1


def test_the_same_grant_again_is_the_binding_that_there_is(store, bind):
    first, again = bind(binding("group:a"), binding("group:a"))
    assert again == first
    (other,) = bind(binding("group:a", owner="search"))
    assert other.id != first.id
    with store.read() as unit:
        assert [each.id for each in unit.role_binding_page(after=None, limit=10).items] == [other.id, first.id]


def test_a_binding_is_removed_once(store, bind):
    first, second = bind(binding("group:a"), binding("group:a", Role.ADMIN))
    with store.begin() as unit:
        assert unit.unbind_role(second.id) == second
    with store.read() as unit:
        assert unit.grants_of(("group:a",)) == (first.grant,)
    with pytest.raises(NotFound, match="`ipnext roles list`"), store.begin() as unit:
        unit.unbind_role(second.id)


def test_bindings_come_in_pages_newest_first(store, bind):
    made = bind(*(binding(f"group:{number}") for number in range(5)))
    with store.read() as unit:
        first = unit.role_binding_page(after=None, limit=3)
        rest = unit.role_binding_page(after=first.next, limit=3)
    assert [*first.items, *rest.items] == made[::-1]
    assert rest.next is None


def test_a_unit_of_one_model_binds_no_roles(store, bind):
    with pytest.raises(RuntimeError), store.begin("ctr") as unit:
        unit.bind_role(binding("group:a"))
