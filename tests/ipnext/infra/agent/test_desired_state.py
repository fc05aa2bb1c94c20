"""Wanted state lies in files and outlives the process."""

import asyncio

import pytest

from ipnext.infra.agent.desired_state import DesiredState


@pytest.fixture
def model(builder):
    return builder("kept")


def test_what_was_put_is_there_again(tmp_path, model):
    wanted = DesiredState(tmp_path)
    wanted.put_deployment(model.deployment({1: (1,)}))
    asyncio.run(wanted.put_route(model.table(1, {1: 1.0})))
    again = DesiredState(tmp_path)
    assert dict(again.deployments) == {model.key(): model.deployment({1: (1,)})}
    assert dict(again.routes) == {"kept": model.table(1, {1: 1.0})}


def test_what_was_removed_stays_away(tmp_path, model):
    wanted = DesiredState(tmp_path)
    wanted.put_deployment(model.deployment({1: (1,)}))
    asyncio.run(wanted.put_route(model.table(1, {1: 1.0})))
    wanted.remove_deployment(model.key())
    wanted.remove_route("kept")
    wanted.remove_route("kept")
    again = DesiredState(tmp_path)
    assert (dict(again.deployments), dict(again.routes)) == ({}, {})


def test_a_write_that_was_cut_off_leaves_the_former_state(tmp_path, model):
    wanted = DesiredState(tmp_path)
    asyncio.run(wanted.put_route(model.table(1, {1: 1.0})))
    (tmp_path / "routes" / ".kept.json.new").write_bytes(b'{"model": "ke')
    assert DesiredState(tmp_path).routes["kept"].revision == 1


def test_a_file_that_is_not_valid_is_set_aside_and_the_others_are_used(tmp_path, model):
    wanted = DesiredState(tmp_path)
    asyncio.run(wanted.put_route(model.table(1, {1: 1.0})))
    (tmp_path / "routes" / "broken.json").write_bytes(b"{}")
    assert set(DesiredState(tmp_path).routes) == {"kept"}
    assert (tmp_path / "routes" / "broken.refused").exists()
