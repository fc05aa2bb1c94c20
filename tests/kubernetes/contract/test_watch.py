"""Lists in pages, selectors, and watches from a version on."""

import pytest

from tests.kubernetes.contract.objects import config_map
from tests.kubernetes.rest_client import Refused

OURS = {"labelSelector": "team=ranking"}


def labelled(name, **labels):
    return config_map(name) | {"metadata": {"name": name, "labels": {"team": "ranking"} | labels}}


def names(objects):
    return [each["metadata"]["name"] for each in objects]


def seen(event):
    return event["type"], event["object"]["metadata"]["name"]


def test_a_watch_begins_with_what_is_there(kube):
    kube.create(labelled("a"))

    with kube.watch("ConfigMap", **OURS) as events:
        assert seen(next(events)) == ("ADDED", "a")
        kube.create(labelled("b"))
        assert seen(next(events)) == ("ADDED", "b")


def test_a_watch_from_a_version_misses_and_repeats_nothing(kube):
    kube.create(labelled("before"))
    version = kube.page("ConfigMap", **OURS)["metadata"]["resourceVersion"]
    kube.create(labelled("a"))
    kube.merge("ConfigMap", "a", {"data": {"color": "red"}})
    kube.delete("ConfigMap", "a")

    with kube.watch("ConfigMap", resourceVersion=version, **OURS) as events:
        found = [next(events) for _ in range(3)]
    assert [seen(each) for each in found] == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    versions = [int(each["object"]["metadata"]["resourceVersion"]) for each in found]
    assert versions == sorted(set(versions))
    assert versions[0] > int(version)


def test_an_object_enters_and_leaves_the_selection_of_a_watch(kube):
    version = kube.create(config_map("a"))["metadata"]["resourceVersion"]

    with kube.watch("ConfigMap", resourceVersion=version, **OURS) as events:
        kube.merge("ConfigMap", "a", {"metadata": {"labels": {"team": "ranking"}}})
        assert seen(next(events)) == ("ADDED", "a")
        kube.merge("ConfigMap", "a", {"metadata": {"labels": {"team": "search"}}})
        assert seen(next(events)) == ("DELETED", "a")


def test_a_watch_ends_at_its_time_limit(kube):
    version = kube.create(labelled("a"))["metadata"]["resourceVersion"]

    with kube.watch("ConfigMap", seconds=1, resourceVersion=version, **OURS) as events:
        assert list(events) == []


def test_bookmarks_bring_the_version_of_an_idle_watch_on(kube):
    version = kube.page("ConfigMap", **OURS)["metadata"]["resourceVersion"]
    later = kube.create(config_map("unseen"))["metadata"]["resourceVersion"]

    with kube.watch("ConfigMap", seconds=180, resourceVersion=version, allowWatchBookmarks=True, **OURS) as events:
        found = next(events)
    assert found["type"] == "BOOKMARK"
    assert int(found["object"]["metadata"]["resourceVersion"]) >= int(later)


def test_a_watch_can_mark_the_end_of_what_is_there(kube):
    kube.create(labelled("a"))
    asked = {"sendInitialEvents": True, "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": True}

    with kube.watch("ConfigMap", **asked, **OURS) as events:
        assert seen(next(events)) == ("ADDED", "a")
        mark = next(events)
    assert mark["type"] == "BOOKMARK"
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_a_list_comes_in_pages_of_one_version(kube):
    for name in ("a", "b", "c", "d", "e"):
        kube.create(labelled(name))

    first = kube.page("ConfigMap", limit=2, **OURS)
    kube.create(labelled("aa"))
    token = first["metadata"]["continue"]
    second = kube.page("ConfigMap", limit=2, **{"continue": token}, **OURS)
    third = kube.page("ConfigMap", limit=2, **{"continue": second["metadata"]["continue"]}, **OURS)

    assert names(first["items"]) + names(second["items"]) + names(third["items"]) == ["a", "b", "c", "d", "e"]
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    assert "continue" not in third["metadata"]


def test_the_items_of_a_list_name_no_kind(kube):
    kube.create(labelled("a"))

    found = kube.page("ConfigMap", **OURS)

    assert (found["apiVersion"], found["kind"]) == ("v1", "ConfigMapList")
    assert not {"apiVersion", "kind"} & set(found["items"][0])


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("team=ranking", ["a", "b"]),
        ("team==ranking,tier!=gold", ["b"]),
        ("tier in (gold, silver)", ["a", "b"]),
        ("tier notin (gold),team", ["b"]),
        ("!tier,team", []),
    ],
)
def test_label_selectors(kube, selector, expected):
    kube.create(labelled("a", tier="gold"))
    kube.create(labelled("b", tier="silver"))
    kube.create(config_map("c"))

    assert names(kube.items("ConfigMap", labelSelector=selector)) == expected


def test_field_selectors(kube):
    kube.create(labelled("a"))
    kube.create(labelled("b"))

    assert names(kube.items("ConfigMap", fieldSelector="metadata.name=b")) == ["b"]
    assert names(kube.items("ConfigMap", fieldSelector="metadata.name!=b", **OURS)) == ["a"]


@pytest.mark.parametrize(
    ("kind", "selector"),
    [
        ("Event", "involvedObject.kind=Pod,involvedObject.name=one,reason=Pulled,type=Normal"),
        ("Node", "spec.unschedulable=false"),
        ("Pod", "spec.nodeName=one,status.phase!=Failed,spec.restartPolicy=Always,status.podIP=127.0.0.2"),
        ("Secret", "type=Opaque"),
        ("Service", "spec.type=ClusterIP"),
    ],
)
def test_some_fields_can_be_selected(kube, kind, selector):
    assert kube.items(kind, fieldSelector=f"metadata.name=none,{selector}") == []


@pytest.mark.parametrize(
    ("kind", "field"), [("ConfigMap", "data.color"), ("ReplicaSet", "status.replicas"), ("Pod", "spec.dnsPolicy")]
)
def test_a_field_that_cannot_be_selected_is_refused(kube, kind, field):
    with pytest.raises(Refused) as refused:
        kube.page(kind, fieldSelector=f"{field}=red")
    assert (refused.value.code, refused.value.reason) == (400, "BadRequest")


def test_a_version_is_a_number(kube):
    with pytest.raises(Refused) as refused:
        kube.page("ConfigMap", resourceVersion="newest")
    assert refused.value.code == 400


def test_a_selector_that_is_none_is_refused(kube):
    with pytest.raises(Refused) as refused:
        kube.page("ConfigMap", labelSelector="a in (")
    assert refused.value.code == 400
