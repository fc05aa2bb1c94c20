"""The models of a replan, row by row, and the pause of all moves."""

from ipnext.model.lifecycle.replans.moves import MoveTrouble
from ipnext.model.lifecycle.replans.replan import ReplanState


def taken(store, *triggers, **options):
    """The replans that a run takes, by what asked for them."""
    with store.begin() as repository:
        for trigger in triggers:
            repository.add_replan(trigger, trigger, **options)
        return [replan.id for replan in repository.claim_replans("plan", run_id="run")]


def test_models_are_read_in_their_order_page_by_page(store):
    with store.begin("plan") as repository:
        repository.list_moves("plan", ("c", "a", "b"))
    with store.read() as repository:
        first = repository.moves("plan", state="waiting", limit=2)
        rest = repository.moves("plan", state="waiting", after=first[-1].position)
        assert [[move.model for move in page] for page in (first, rest)] == [["c", "a"], ["b"]]
        assert repository.moves("other", state="waiting") == ()


def test_a_list_that_is_there_stays(store):
    for models in (("a", "b"), ("c",)):
        with store.begin("plan") as repository:
            repository.list_moves("plan", models)
    with store.read() as repository:
        assert repository.move_counts("plan") == {"waiting": 2}


def test_moves_are_asked_and_end(store):
    with store.begin("plan") as repository:
        repository.list_moves("plan", ("a", "b", "c"))
        repository.mark_asked("plan", {0: "move-a", 2: "move-c"})
        assert [move.change_id for move in repository.moves("plan", state="moving")] == ["move-a", "move-c"]
        repository.mark_moved("plan", [0])
        repository.mark_failed("plan", {2: "rolled back"})
        assert repository.move_counts("plan") == {"waiting": 1, "moved": 1, "failed": 1}
        assert repository.newest_failures("plan", limit=5) == (MoveTrouble(model="c", message="rolled back"),)


def test_lists_of_former_replans_are_dropped(store):
    with store.begin() as repository:
        for plan in ("old", "new"):
            repository.list_moves(plan, ("a",))
        repository.forget_moves(keep={"new"})
        assert (repository.move_counts("old"), repository.move_counts("new")) == ({}, {"waiting": 1})


def test_a_pause_is_kept_and_its_reason_may_change(store):
    with store.begin() as repository:
        began = repository.pause_moves("release night").paused_at
        repository.pause_moves("release weekend")
    with store.begin() as repository:
        assert repository.moves_pause().model_dump() == {"reason": "release weekend", "paused_at": began}
        assert repository.resume_moves()
        assert repository.moves_pause() is None
        assert not repository.resume_moves()


def test_while_moves_are_paused_only_drains_and_dry_runs_are_planned(store):
    with store.begin() as repository:
        repository.pause_moves("release night")
    assert taken(store, "schedule", "manual") == []
    assert taken(store, "drain") == ["drain"]
    with store.read() as repository:
        assert (repository.waiting_replans(), repository.replans_open()) == (0, 2)


def test_a_dry_run_is_planned_while_moves_are_paused(store):
    with store.begin() as repository:
        repository.pause_moves("release night")
    assert taken(store, "manual", dry_run=True) == ["manual"]


def test_what_waited_for_the_end_of_a_pause_is_handed_to_the_workflow_again(store):
    with store.begin() as repository:
        repository.pause_moves("release night")
        repository.add_replan("r1", "schedule")
        repository.queue_replans(["r1"])
        assert repository.due_replans() == ()
        repository.resume_moves()
        assert [replan.id for replan in repository.due_replans()] == ["r1"]
        assert repository.replan("r1").state is ReplanState.RECORDED
