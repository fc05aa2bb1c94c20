"""Fleet and models on both engines."""

import pytest

from ipnext.errors import NotFound, StaleWrite
from ipnext.model.fleet import FleetSpec


def fleet(*, units: float = 4.0) -> FleetSpec:
    return FleetSpec.model_validate(
        {
            "regions": ["north"],
            "rttMs": [[0]],
            "hardware": ["cpu"],
            "supply": [{"region": "north", "hardware": "cpu", "units": units, "unitCost": 1}],
        }
    )


def test_before_the_first_fleet_there_is_none(store):
    with store.begin() as repository, pytest.raises(NotFound, match="kind: Fleet"):
        repository.fleet()


def test_a_fleet_comes_back_and_its_version_rises_with_each_change(store):
    with store.begin() as repository:
        assert repository.put_fleet(fleet(), expected_version=0).version == 1
    with store.begin() as repository:
        assert repository.put_fleet(fleet(), expected_version=1).version == 1
        assert repository.put_fleet(fleet(units=8), expected_version=1).version == 2
    with store.begin() as repository:
        assert repository.fleet().spec == fleet(units=8)


def test_a_fleet_write_that_expects_another_version_is_stale(store):
    with store.begin() as repository:
        repository.put_fleet(fleet(), expected_version=None)
        with pytest.raises(StaleWrite, match=r"version 1.*version 7"):
            repository.put_fleet(fleet(units=8), expected_version=7)
    with store.begin() as repository:
        assert repository.fleet().spec == fleet()


def test_a_model_comes_back_as_applied(store, make):
    manifest = make.manifest()
    with store.begin() as repository:
        put = repository.put_model(manifest, expected_version=0)
    with store.begin() as repository:
        record = repository.model("ctr")
    assert record == put
    assert record.manifest == manifest
    assert (record.generation, record.version, record.observed_generation, record.retired) == (1, 1, 0, False)
    assert record.created_at.utcoffset().total_seconds() == 0


def test_the_same_manifest_leaves_the_record_as_it_is(applied, make):
    with applied.begin() as repository:
        before = repository.model("ctr")
        assert repository.put_model(make.manifest(), expected_version=None) == before


def test_the_generation_rises_with_the_spec_only_and_the_version_with_every_change(applied, make):
    changed = make.manifest(qps=20)
    labelled = changed.model_copy(update={"metadata": changed.metadata.model_copy(update={"labels": {"team": "ads"}})})
    with applied.begin() as repository:
        record = repository.put_model(changed, expected_version=1)
        assert (record.generation, record.version) == (2, 2)
        record = repository.put_model(labelled, expected_version=2)
        assert (record.generation, record.version) == (2, 3)


@pytest.mark.parametrize("expected", [0, 2, -1, 10**30])
def test_a_model_write_that_expects_another_version_is_stale(applied, make, expected):
    with (
        applied.begin() as repository,
        pytest.raises(StaleWrite, match=rf"is at version 1.*expects version {expected}"),
    ):
        repository.put_model(make.manifest(qps=20), expected_version=expected)


def test_a_guarded_write_to_a_model_that_does_not_exist_is_stale(store, make):
    with store.begin() as repository, pytest.raises(StaleWrite, match=r"does not exist \(version 0\).*version 3"):
        repository.put_model(make.manifest(), expected_version=3)


def test_an_unknown_model_names_up_to_five_known_ones(store, make):
    with store.begin() as repository:
        with pytest.raises(NotFound, match="none is known yet"):
            repository.model("ctr")
        for number in range(7):
            repository.put_model(make.manifest(f"m{number}"), expected_version=None)
        with pytest.raises(NotFound, match="known: m0, m1, m2, m3, m4 and 2 more"):
            repository.model("ctr")


@pytest.mark.parametrize("name", ["nul\0", "\ud800", "x" * 5000, "' OR 1=1 --", ""])
def test_a_name_that_no_model_can_have_is_not_found(applied, name):
    with applied.begin() as repository, pytest.raises(NotFound):
        repository.model(name)


def test_models_are_listed_by_name_on_both_engines_alike(store, make):
    names = ["b-1", "a", "b", "b0", "a-z", "ab"]
    with store.begin() as repository:
        for name in names:
            repository.put_model(make.manifest(name), expected_version=None)
        assert [record.name for record in repository.models()] == sorted(names)


def test_what_the_platform_observes_leaves_the_version_alone(applied):
    with applied.begin("ctr") as repository:
        record = repository.update_model("ctr", serving_generation=3, target_generation=4, observed_generation=1)
        assert (record.serving_generation, record.target_generation, record.observed_generation) == (3, 4, 1)
        record = repository.update_model("ctr", target_generation=None)
    assert (record.serving_generation, record.target_generation, record.version) == (3, None, 1)


def test_a_retired_model_lives_again_when_it_is_applied(applied, make):
    with applied.begin() as repository:
        assert repository.update_model("ctr", retired=True).version == 2
        record = repository.put_model(make.manifest(), expected_version=2)
    assert (record.retired, record.version, record.generation) == (False, 3, 1)


def put(repository, manifest):
    """Put a manifest, and return its revision."""
    return repository.put_model(manifest, expected_version=None).generation


def demand_in_force(repository):
    (item,) = repository.model("ctr").in_force.spec.demand
    return item.qps


def accept(repository, revision, manifest):
    """As a validation does, and then the planning of the change."""
    repository.accept_revision("ctr", revision, manifest.spec)
    repository.put_in_force("ctr")


def test_a_manifest_is_in_force_once_a_change_is_planned_by_it(applied, make):
    with applied.begin("ctr") as repository:
        accept(repository, 1, make.manifest())
        second = put(repository, make.manifest(qps=20))
        repository.accept_revision("ctr", second, make.manifest(qps=20).spec)
        assert demand_in_force(repository) == 10, "a freeze may hold the change for days"
        put(repository, make.manifest(qps=30))
        repository.put_in_force("ctr")
        assert demand_in_force(repository) == 20


def test_a_manifest_is_in_force_from_its_acceptance_on(applied, make):
    with applied.begin("ctr") as repository:
        assert demand_in_force(repository) == 10, "nothing was accepted yet"
        accept(repository, 1, make.manifest())
        second = put(repository, make.manifest(qps=20))
        assert demand_in_force(repository) == 10
        repository.refuse_revision("ctr", second)
        third = put(repository, make.manifest(qps=30))
        assert demand_in_force(repository) == 10
        accept(repository, third, make.manifest(qps=30))
        assert demand_in_force(repository) == 30
        assert repository.model("ctr").refused_generation is None


def promote(repository, make, qps, *, change_id):
    """As the planning of a change does with a manifest that was accepted."""
    manifest = make.manifest(qps=qps)
    repository.accept_revision("ctr", put(repository, manifest), manifest.spec)
    repository.keep_former("ctr", change_id=change_id, generation=1, placed=None, plan_id="p")
    repository.put_in_force("ctr")


@pytest.mark.parametrize("done", [False, True])
def test_the_end_of_a_change_decides_whether_its_manifest_stays_in_force(applied, make, done):
    with applied.begin("ctr") as repository:
        accept(repository, 1, make.manifest())
        promote(repository, make, 20, change_id="x")
        repository.keep_former("ctr", change_id="x", generation=1, placed=None, plan_id="p")
        put(repository, make.manifest(qps=30))
        repository.end_force("ctr", change_id="other", done=not done)
        assert demand_in_force(repository) == 20
        repository.end_force("ctr", change_id="x", done=done)
        assert demand_in_force(repository) == (20 if done else 10)
        assert repository.model("ctr").former is None
        repository.end_force("ctr", change_id="x", done=not done)
        assert demand_in_force(repository) == (20 if done else 10), "a late end of it"


def test_of_two_open_changes_the_later_one_restores_what_was_in_force_before_both(applied, make):
    with applied.begin("ctr") as repository:
        accept(repository, 1, make.manifest())
        promote(repository, make, 20, change_id="x")
        promote(repository, make, 30, change_id="y")
        repository.end_force("ctr", change_id="x", done=False)
        assert demand_in_force(repository) == 30
        repository.end_force("ctr", change_id="y", done=False)
        assert demand_in_force(repository) == 10


def test_what_was_accepted_is_what_was_judged_and_not_what_was_applied_since(applied, make):
    with applied.begin("ctr") as repository:
        accept(repository, 1, make.manifest())
        second = put(repository, make.manifest(qps=20))
        put(repository, make.manifest(qps=30))
        accept(repository, second, make.manifest(qps=20))
        assert demand_in_force(repository) == 20
        accept(repository, 1, make.manifest())
        assert demand_in_force(repository) == 20, "an older revision is accepted late"


def test_the_owner_in_force_is_the_newest(applied, make):
    with applied.begin("ctr") as repository:
        accept(repository, 1, make.manifest())
        given = make.manifest(qps=20)
        put(repository, given.model_copy(update={"metadata": given.metadata.model_copy(update={"owner": "ads"})}))
        assert repository.model("ctr").in_force.metadata.owner == "ads"
        assert demand_in_force(repository) == 10


def test_policies_in_force_are_the_newest(applied, make):
    with applied.begin("ctr") as repository:
        accept(repository, 1, make.manifest())
        document = make.manifest(qps=20).model_dump(mode="json", by_alias=True)
        document["spec"] |= {"access": {"predictions": "authenticated"}, "validation": {"skip": {"edges": "known"}}}
        put(repository, type(make.manifest()).model_validate(document))
        found = repository.model("ctr").in_force.spec
        assert (found.access.predictions, found.validation.skip) == ("authenticated", {"edges": "known"})
        assert demand_in_force(repository) == 10


def cut(manifest):
    policy = {"parts": [{"name": "sparse", "modules": ["tables"]}], "default": "rest"}
    document = manifest.model_dump(mode="json", by_alias=True)
    document["spec"] |= {"split": policy, "graph": None, "parts": document["spec"]["parts"][:1]}
    return type(manifest).model_validate(document)


@pytest.mark.parametrize("applied_since", [False, True])
def test_a_revision_whose_cut_is_refused_is_judged_no_longer(applied, make, applied_since):
    def judged(repository):
        (item,) = repository.model("ctr").judged_manifest.spec.demand
        return item.qps

    with applied.begin("ctr") as repository:
        accept(repository, 1, make.manifest())
        repository.update_model("ctr", observed_generation=1)
        given = cut(make.manifest(qps=20))
        second = put(repository, given)
        repository.accept_revision("ctr", second, given.spec)
        if applied_since:
            put(repository, make.manifest(qps=30))
        assert (judged(repository), demand_in_force(repository)) == (20, 10)
        repository.refuse_revision("ctr", second)
        repository.put_in_force("ctr")
        assert (judged(repository), demand_in_force(repository)) == (10, 10)
        repository.accept_revision("ctr", second, given.spec)
        repository.put_in_force("ctr")
        assert demand_in_force(repository) == 20, "another snapshot can be cut"


def test_a_refusal_of_the_revision_that_serves_changes_nothing(applied, make):
    with applied.begin("ctr") as repository:
        given = cut(make.manifest(qps=20))
        second = put(repository, given)
        accept(repository, second, given)
        repository.update_model("ctr", observed_generation=second)
        repository.refuse_revision("ctr", second)
        assert demand_in_force(repository) == 20
        assert repository.model("ctr").refused_generation is None
