"""Golden requests: outputs as expected within tolerances, and the message of each mismatch."""

import json

import pytest
import torch

from ipnext.errors import InvalidInput
from ipnext.model.registry.checking import GOLDEN_FILE, MOST_GOLDEN
from serving.checking.golden import SHOWN, read_golden, run_golden
from tests.serving.optimizing.models import export, inputs


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden") / "whole"
    export(directory, golden={"first": inputs(2), "second": inputs(3, seed=5)})
    return directory


@pytest.fixture
def changed(snapshot, tmp_path):
    """Write the golden requests of the snapshot with changes."""

    def write(change):
        document = json.loads((snapshot / GOLDEN_FILE).read_text())
        change(document)
        (tmp_path / GOLDEN_FILE).write_text(json.dumps(document))
        return tmp_path / GOLDEN_FILE

    return write


def output(document, request, name):
    return next(each for each in document["requests"][request]["outputs"] if each["name"] == name)


def test_an_export_records_what_the_module_answers_and_the_snapshot_gives_the_same(snapshot):
    found = run_golden(snapshot, snapshot / GOLDEN_FILE)
    assert (found.requests, found.values, found.mismatches, found.shown) == (2, 10, 0, ())
    assert found.largest_error < 1e-6


def test_a_mismatch_names_request_output_index_expected_and_got(snapshot, changed):
    def shift(document):
        output(document, 1, "score")["data"][2] += 0.25

    golden = changed(shift)
    expected = output(json.loads(golden.read_text()), 1, "score")["data"][2]
    found = run_golden(snapshot, golden)
    assert found.mismatches == 1
    assert found.shown[0].startswith(f"request 'second', output 'score'[2]: expected {expected:.9g}, got ")
    assert found.largest_error == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize(
    ("tolerances", "mismatches"),
    [({"absolute": 0.3}, 0), ({"absolute": 0.2}, 1), ({"absolute": 0, "relative": 0.9}, 0), ({"relative": 0.1}, 1)],
)
def test_tolerances_are_absolute_and_relative_for_each_output(snapshot, changed, tolerances, mismatches):
    def shift(document):
        found = output(document, 0, "score")
        found["data"][0] += 0.25
        found.update(tolerances)

    assert run_golden(snapshot, changed(shift)).mismatches == mismatches


def test_whole_numbers_have_to_be_equal_whatever_the_tolerance(snapshot, changed):
    def shift(document):
        found = output(document, 0, "best")
        found["data"][1] += 1
        found["absolute"] = 100

    (line,) = run_golden(snapshot, changed(shift)).shown
    assert line.startswith("request 'first', output 'best'[1]: expected ")


def test_another_shape_is_a_mismatch(snapshot, changed):
    def cut(document):
        found = output(document, 0, "score")
        found.update(data=found["data"][:1], shape=[1])

    assert run_golden(snapshot, changed(cut)).shown == (
        "request 'first', output 'score': expected shape [1], got shape [2]",
    )


def test_nan_fits_nothing(tmp_path):
    class Root(torch.nn.Module):
        def forward(self, x):
            return torch.log(x)

    export(tmp_path / "nan", Root(), {"x": torch.ones(2)}, golden={"zero": {"x": torch.ones(1)}})
    document = json.loads((tmp_path / "nan" / GOLDEN_FILE).read_text())
    document["requests"][0]["inputs"][0]["data"] = [-1.0]
    (tmp_path / GOLDEN_FILE).write_text(json.dumps(document))
    assert run_golden(tmp_path / "nan", tmp_path / GOLDEN_FILE).mismatches == 1


def test_many_mismatches_are_counted_and_the_first_are_told(snapshot, changed):
    def repeat(document):
        output(document, 0, "score")["data"] = [9.0, 9.0]
        document["requests"] = [{**document["requests"][0], "name": f"r{n}"} for n in range(30)]

    found = run_golden(snapshot, changed(repeat))
    assert (found.mismatches, len(found.shown)) == (60, SHOWN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(format="v0"), "format"),
        (lambda d: d.update(requests=[]), "requests"),
        (lambda d: d.update(requests=d["requests"] * MOST_GOLDEN), "requests"),
        (lambda d: d["requests"][0]["inputs"].pop(), "request 'first': input"),
        (lambda d: d["requests"][0]["inputs"][0]["data"].pop(), "request 'first': tensor"),
        (lambda d: output(d, 0, "score").update(name="rank"), "output 'rank' of FP32 is not among the outputs"),
        (lambda d: output(d, 0, "score").update(absolute=-1), "absolute"),
        (lambda d: d.update(more=1), "more"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(snapshot, changed, change, told):
    with pytest.raises(InvalidInput, match=told):
        run_golden(snapshot, changed(change))


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / GOLDEN_FILE).write_text("{")
    with pytest.raises(InvalidInput, match=r"golden\.json: is not JSON"):
        read_golden(tmp_path / GOLDEN_FILE)


def test_an_export_refuses_requests_that_do_not_fit(tmp_path):
    with pytest.raises(InvalidInput, match="golden: request 'odd': input 'item' is missing"):
        export(tmp_path / "x", golden={"odd": {"user": torch.zeros(1, dtype=torch.int64)}})
