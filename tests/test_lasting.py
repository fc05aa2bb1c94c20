"""What files share: begun once, ended with the last of them, and all of them in one process."""

from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.conftest import IN_ONE_PROCESS, LONG_FIRST, GroupScheduling
from tests.lasting import Lasting

HERE = Path(__file__).parent


def test_it_is_begun_by_the_first_that_asks_and_begun_anew_after_its_end():
    told, lasting = [], Lasting()

    @contextmanager
    def platform():
        told.append("begun")
        yield len(told)
        told.append("ended")

    assert [lasting.get("one", platform) for _ in range(3)] == [1, 1, 1]
    lasting.close()
    assert told == ["begun", "ended"]
    assert lasting.get("one", platform) == 3
    lasting.close()


def test_the_files_of_a_group_go_to_one_process_and_every_other_file_alone():
    scope = GroupScheduling.__new__(GroupScheduling)._split_scope
    files = [path.relative_to(HERE.parent).as_posix() for path in HERE.rglob("test_*.py")]
    scopes = {file: scope(f"{file}::test_some[a/b::c]") for file in files}
    for together in IN_ONE_PROCESS:
        assert {scopes[f"tests/{file}"] for file in together} == {together[0]}
    shared = {f"tests/{file}" for together in IN_ONE_PROCESS for file in together}
    assert all(scopes[file] == file for file in files if file not in shared)


@pytest.mark.parametrize(
    ("count", "taken"), [(4, {"gw0": "a", "gw1": "b", "gw3": "c"}), (5, {"gw0": "a", "gw4": "d", "gw3": "b"})]
)
def test_the_last_of_five_processes_takes_the_short_files_first(count, taken):
    scheduling = GroupScheduling.__new__(GroupScheduling)
    scheduling.workqueue = OrderedDict((name, {f"{name}::test": False}) for name in "abcd")
    scheduling.assigned_work = {}
    nodes = {name: Mock(workerinput={"workerid": name, "workercount": count}) for name in taken}
    scheduling.registered_collections = {node: [f"{name}::test" for name in "abcd"] for node in nodes.values()}
    for node in nodes.values():
        scheduling._assign_work_unit(node)
    assert {name: "".join(scheduling.assigned_work[node]) for name, node in nodes.items()} == taken


def test_every_name_of_the_order_is_of_a_file_or_a_folder_here():
    assert [name for name in LONG_FIRST if not any(HERE.rglob(name))] == []
