"""Rules of server-side apply that hold for all configurations."""

from hypothesis import given
from hypothesis import strategies as st

from tests.kubernetes.server.fields.field_sets import fields_of, from_document, to_document
from tests.kubernetes.server.fields.ownership import APPLY, UPDATE, Manager, Write, apply, update
from tests.kubernetes.server.schema.schema import core_schema

SCHEMA = core_schema("apps", "v1", "Deployment")
OURS, THEIRS = (Write(Manager(name, APPLY, "apps/v1"), SCHEMA) for name in ("ours", "theirs"))
EDITOR = Write(Manager("editor", UPDATE, "apps/v1"), SCHEMA)
NOTHING = {"metadata": {"name": "web"}}

values = st.sampled_from(["1", "2"])
variables = st.dictionaries(st.sampled_from(["A", "B", "C"]), values, min_size=1).map(
    lambda found: [{"name": name, "value": each} for name, each in found.items()]
)
optional = {"image": values, "args": st.lists(values, min_size=1, max_size=2), "env": variables}
containers = st.dictionaries(
    st.sampled_from(["main", "side"]), st.fixed_dictionaries({}, optional=optional), min_size=1
).map(lambda found: [{"name": name, **each} for name, each in found.items()])
configurations = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {"name": st.just("web")}, optional={"labels": st.dictionaries(st.sampled_from("ab"), values, min_size=1)}
        ),
        "spec": st.fixed_dictionaries(
            {"template": st.fixed_dictionaries({"spec": st.fixed_dictionaries({"containers": containers})})},
            optional={"replicas": st.integers(0, 3)},
        ),
    }
)


def has(obj, config):
    """Whether an object has all that a configuration says; items of lists by their names."""
    if isinstance(config, dict):
        return isinstance(obj, dict) and all(name in obj and has(obj[name], each) for name, each in config.items())
    if isinstance(config, list) and config and isinstance(config[0], dict):
        named = {each["name"]: each for each in obj}
        return all(each["name"] in named and has(named[each["name"]], each) for each in config)
    return obj == config or not config


@given(configurations)
def test_fields_survive_their_document(config):
    fields = fields_of(config, SCHEMA)

    assert from_document(to_document(fields)) == fields


@given(configurations, configurations)
def test_an_object_has_what_was_applied_last(first, second):
    obj, owners = apply(NOTHING, first, {}, OURS, force=False)

    obj, owners = apply(obj, second, owners, OURS, force=False)

    assert has(obj, second)
    assert OURS.owned(fields_of(obj, SCHEMA)) == owners[OURS.manager]
    assert apply(obj, second, owners, OURS, force=False) == (obj, owners)


@given(configurations, configurations, configurations)
def test_what_another_applied_stays(first, other, second):
    obj, owners = apply(NOTHING, first, {}, OURS, force=False)
    obj, owners = apply(obj, other, owners, THEIRS, force=True)

    obj, owners = apply(obj, second, owners, OURS, force=True)

    assert has(obj, second)
    kept = owners.get(THEIRS.manager, frozenset())
    assert kept <= fields_of(other, SCHEMA)
    assert kept <= fields_of(obj, SCHEMA)


@given(configurations, configurations)
def test_each_changed_field_has_one_owner_after_an_update(first, second):
    obj, owners = apply(NOTHING, first, {}, OURS, force=False)

    left = update(obj, second, owners, EDITOR)

    assert not left[OURS.manager] & left[EDITOR.manager]
    assert left[OURS.manager] <= fields_of(second, SCHEMA)
