"""The program of a step's process, called in this one: its exit status and its words."""

import pytest

from ipnext.errors import EXIT_BAD_INPUT
from ipnext.model.value import canonical_json
from serving.optimizing import process
from tests.serving.optimizing.models import export, step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("process") / "whole"
    export(directory)
    return directory


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (step(tables=["none"]), "no embedding table to replace"),
        (step(output="best"), "'best' has not one number a row"),
    ],
)
def test_a_step_that_does_not_fit_ends_with_the_reason(whole, tmp_path, monkeypatch, capsys, given, told):
    job = tmp_path / "job.json"
    job.write_text(canonical_json({"step": given.model_dump(mode="json", by_alias=True)}))
    monkeypatch.setattr("sys.argv", ["optimize", str(whole), str(job), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        process.main()
    assert ended.value.code == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert not (tmp_path / "out").exists()
