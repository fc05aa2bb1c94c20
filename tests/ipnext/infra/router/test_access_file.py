"""A region's access list on disk."""

import json
import stat

import pytest
from structlog.testing import capture_logs

from ipnext.errors import StaleWrite
from ipnext.infra.router.access_file import AccessFile
from ipnext.model.access.predictions import AccessList, AccessSpec, ModelAccess
from ipnext.model.deployment.route_table import RouteTable

CLOSED = AccessSpec(predictions="authenticated")


def listed(revision, **models):
    return AccessList(
        revision=revision, models=tuple(ModelAccess(model=m, owner="o", access=access) for m, access in models.items())
    )


def table(model, access="open"):
    return RouteTable(model=model, region="eu", revision=1, shares=(), served=(), access=access)


@pytest.fixture
def opened(tmp_path):
    return lambda: AccessFile(tmp_path / "kept.json", tmp_path / "followed.json", region="eu")


def test_the_router_gets_the_models_that_are_routed_here(opened, tmp_path):
    file = opened()
    file.publish({"a"})
    assert json.loads((tmp_path / "followed.json").read_text())["revision"] == 0, "there never was one"
    file.put(listed(3, a=CLOSED, b=CLOSED))
    assert not file.is_published
    file.publish({"a"})
    assert file.is_published
    followed = json.loads((tmp_path / "followed.json").read_text())
    assert [one["model"] for one in followed["models"]] == ["a"]
    file.publish({"a", "b"})
    assert len(json.loads((tmp_path / "followed.json").read_text())["models"]) == 2


def test_a_list_outlives_the_agent_and_only_this_user_may_read_it(opened, tmp_path):
    file = opened()
    file.put(listed(3, a=CLOSED))
    file.save()
    again = opened()
    assert again.newest.revision == 3
    again.publish({"a"})
    for name in ("kept.json", "followed.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_an_older_list_is_refused_and_the_same_one_is_not(opened):
    file = opened()
    file.put(listed(3, a=CLOSED))
    file.put(listed(3, a=CLOSED))
    with pytest.raises(StaleWrite, match="revision 2 was given, but revision 3 is in force"):
        file.put(listed(2, a=AccessSpec()))
    with pytest.raises(StaleWrite, match="revision 3 was given, but the one in force has other content"):
        file.put(listed(3, a=AccessSpec()))
    assert file.find_closed([table("a")]) == {"a"}


def test_a_list_that_can_not_be_read_is_lost_and_closes_every_model_until_the_next_one(opened, tmp_path):
    (tmp_path / "kept.json").write_text("{")
    tables = [table("a"), table("b", "authenticated")]
    for _ in range(2):
        file = opened()
        file.publish({"a"})
        assert (file.newest.revision, file.find_closed(tables)) == (0, {"a", "b"})
        assert not (tmp_path / "followed.json").exists(), "a router that starts has lost it, too"
    file.put(listed(3, a=AccessSpec()))
    file.save()
    assert file.find_closed(tables) == {"b"}
    (tmp_path / "kept.json").unlink()
    assert opened().find_closed(tables) == {"b"}, "nothing is left of it"


def test_a_router_keeps_the_list_that_its_agent_lost(opened, tmp_path):
    file = opened()
    file.put(listed(3, a=CLOSED))
    file.save()
    file.publish({"a"})
    (tmp_path / "kept.json").write_text("{")
    opened().publish({"a"})
    assert json.loads((tmp_path / "followed.json").read_text())["revision"] == 3


def test_a_model_is_closed_by_the_list_or_else_by_its_table(opened):
    tables = [table("a", "authenticated"), table("b"), table("c", "authenticated"), table("d")]
    file = opened()
    assert file.find_closed(tables) == {"a", "c"}
    file.put(listed(1, a=AccessSpec(), b=CLOSED))
    assert file.find_closed(tables) == {"b", "c"}


def test_a_list_that_can_not_be_written_is_kept_in_memory_and_removes_the_old_one(opened, tmp_path):
    file = opened()
    file.put(listed(3, a=CLOSED))
    file.save()
    file.publish({"a"})
    full = [tmp_path / f".{name}.new" for name in ("kept.json", "followed.json")]
    for path in full:
        path.mkdir()
    file.put(listed(4))
    with capture_logs() as logs:
        for _ in range(3):
            file.save()
            file.publish({"a"})
    assert [entry["event"].split(",")[0] for entry in logs] == ["access list not written"] * 2
    assert (file.newest.revision, file.is_published) == (4, False)
    assert not (tmp_path / "kept.json").exists(), "an agent that starts has lost its list rather than an old one"
    assert opened().find_closed([table("a")]) == {"a"}
    assert not (tmp_path / "followed.json").exists()
    assert file.extract({"a"}).revision == 4
    for path in full:
        path.rmdir()
    file.save()
    file.publish({"a"})
    assert file.is_published
    assert opened().newest.revision == 4
    assert not (tmp_path / "kept.refused").exists()


def test_the_first_list_that_can_not_be_written_is_lost_with_its_agent(opened, tmp_path):
    (tmp_path / ".kept.json.new").mkdir()
    file = opened()
    file.put(listed(1, a=CLOSED))
    file.save()
    assert opened().find_closed([table("a")]) == {"a"}
