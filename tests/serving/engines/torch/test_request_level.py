"""Inputs given once for all rows of a request.

The answers of repeating them in the client, computed once where it can be.
"""

import numpy as np
import pytest
import torch
from torch import nn

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import InvalidInput
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.value import canonical_json
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model

ROWS = (1, 2, 64, 257)


class Towers(nn.Module):
    """A tower for the user, one for the item, and three ways in which they meet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(30, 8), nn.Embedding(40, 8)
        self.seen = nn.EmbeddingBag(40, 8)
        self.user_tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.item_tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.top = nn.Linear(16, 1)

    def forward(self, user, history, item):
        u = self.user_tower(torch.cat([self.users(user), self.seen(history)], 1))
        i = self.item_tower(self.items(item))
        near = torch.bmm(self.items(history), i[:, :, None]).squeeze(2)
        return {"score": (u * i).sum(1), "rank": self.top(torch.cat([u, i], 1)).squeeze(1), "near": near, "user": u}


class Meeting(nn.Module):
    """User rows [B, 4] go through `meet` beside item rows [B, 4]."""

    def __init__(self, meet):
        super().__init__()
        torch.manual_seed(0)
        self.low = nn.Linear(4, 4)
        self.meet = meet

    def forward(self, user, item):
        return self.meet(torch.relu(self.low(user)), item)


def numbered(u, i):
    return u * torch.arange(u.shape[0])[:, None] + i


MIXING = {
    "a softmax over the batch": lambda u, i: torch.softmax(u, 0) + i,
    "a running sum over the batch": lambda u, i: u.cumsum(0) * i,
    "a sum over the batch": lambda u, i: u.sum(0, keepdim=True) + i,
    "the batch folded into another dimension": lambda u, i: torch.cat([u.reshape(-1, 2), i.reshape(-1, 2)], 1),
    "numbers of rows": numbered,
}
PLAIN = {
    "a sum": lambda u, i: u + i,
    "a mean over the batch": lambda u, i: u - i + u.mean(0, keepdim=True),
    "a size of the batch": lambda u, i: u.view(u.shape[0], 2, 2).sum(2).repeat(1, 2) * i + i.shape[0],
    "zeros of the batch": lambda u, i: torch.cat([u, torch.zeros(u.shape[0], 1), i], 1),
    "a view that repeated rows do not have": lambda u, i: (u[:, :2] * 1).view(-1, 1, 2) * i[:, :2, None],
    "the batch turned": lambda u, i: u.T @ i,
    "a chunk": lambda u, i: torch.cat([*u.chunk(2, 1), i], 1),
    "the user alone": lambda u, _: u * 2,
}


def exported(directory, module, examples, once):
    manifest = export_model(module, examples, directory, request_inputs=once)
    part = TorchEngine().load(directory, manifest, {})
    part.warm_up()
    return part


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("towers")


@pytest.fixture(scope="module")
def towers(place):
    examples = {name: torch.from_numpy(array) for name, array in request(4).items()}
    return exported(place / "towers", Towers(), examples, ["history", "user"])


def request(rows):
    random = np.random.default_rng(rows)
    return {
        "user": random.integers(0, 30, 1),
        "history": random.integers(0, 40, (1, 5)),
        "item": random.integers(0, 40, rows),
    }


def repeated(given):
    rows = max(len(array) for array in given.values())
    return {name: np.repeat(array, rows, 0) if len(array) == 1 else array for name, array in given.items()}


def check_alike(got, expected, *, bits=False):
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        if bits:
            assert np.array_equal(got[name], array), name
        else:
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * np.abs(array).max())


@pytest.mark.parametrize("rows", ROWS)
def test_a_user_given_once_answers_as_one_repeated_by_the_client(towers, rows):
    check_alike(towers.infer(request(rows)), towers.infer(repeated(request(rows))))


def test_a_repeated_user_is_answered_as_by_a_snapshot_without_request_inputs(towers, tmp_path):
    examples = {name: torch.from_numpy(array) for name, array in repeated(request(4)).items()}
    plain = exported(tmp_path / "plain", Towers(), examples, [])
    for rows in ROWS:
        check_alike(towers.infer(repeated(request(rows))), plain.infer(repeated(request(rows))), bits=True)


def test_the_users_side_runs_once(towers, monkeypatch):
    """Rows that each product sees: one for the user's layers, all for the items'."""
    monkeypatch.setattr(towers._once, "_whole", lambda _: pytest.fail("the whole program ran"))
    assert len(towers.infer(request(64))["score"]) == 64
    with pytest.raises(pytest.fail.Exception, match="the whole program ran"):
        towers.infer(repeated(request(64)))


def test_a_pass_is_not_begun_before_it_is_known_how_many_rows_there_are(towers):
    assert towers.stage(frozenset({"item"})) is None


def test_one_of_two_request_inputs_given_once_is_repeated(towers):
    given = request(7)
    mixed = {**given, "user": np.repeat(given["user"], 7)}
    check_alike(towers.infer(mixed), towers.infer(repeated(given)), bits=True)


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_the_rows_of_the_user_gets_its_inputs_repeated(tmp_path, name):
    part = exported(tmp_path / "mixing", Meeting(MIXING[name]), vectors(3), ["user"])
    assert part._once.partitioned is None
    check_part(part, bits=True)


@pytest.mark.parametrize("name", PLAIN)
def test_what_treats_each_row_alike_is_computed_once(tmp_path, name):
    part = exported(tmp_path / "plain", Meeting(PLAIN[name]), vectors(3), ["user"])
    assert part._once.partitioned is not None
    check_part(part)


def vectors(rows):
    random = np.random.default_rng(rows)
    return {
        "user": torch.from_numpy(random.standard_normal((1, 4)).astype(np.float32)),
        "item": torch.from_numpy(random.standard_normal((rows, 4)).astype(np.float32)),
    }


def check_part(part, *, bits=False):
    for rows in ROWS:
        given = {name: tensor.numpy() for name, tensor in vectors(rows).items()}
        check_alike(part.infer(given), part.infer(repeated(given)), bits=bits)


def test_nothing_to_compute_once_and_nothing_beside_it_need_no_halves(tmp_path):
    bare = exported(tmp_path / "bare", Bare(), vectors(3), ["user"])
    assert bare._once.partitioned is None
    check_part(bare, bits=True)
    alone = exported(tmp_path / "alone", Bare(), vectors(1), ["user", "item"])
    assert alone._once.partitioned is None
    check_part(alone, bits=True)


class Bare(nn.Module):
    def forward(self, user, item):
        return torch.cat([user, item], 1)


def test_the_mark_stands_in_the_manifest_in_the_order_of_the_inputs(place, towers):
    manifest = SnapshotManifest.model_validate_json((place / "towers" / "snapshot.json").read_bytes())
    assert manifest.signature.request_inputs == towers.signature.request_inputs == ("user", "history")
    assert SnapshotManifest.model_validate_json(canonical_json(manifest)).digest == manifest.digest


def test_a_snapshot_without_request_inputs_keeps_the_digest_it_had_before_there_were_any(published):
    manifest = published.sources["dense", 1].manifest
    assert "request_inputs" not in canonical_json(manifest)
    assert "request_inputs" not in manifest.model_dump()["signature"]


@pytest.mark.parametrize(
    ("once", "words"),
    [
        (["users"], "request_inputs: 'users' is no input; the inputs are user, item"),
        ("user", "request_inputs: must be a list of names of inputs, got the text 'user'"),
        ([], "dimension 0 is the batch and must be one size >= 1 for all, got {'user': 1, 'item': 3}"),
    ],
)
def test_export_refuses_names_that_are_none_and_examples_that_do_not_fit(tmp_path, once, words):
    with pytest.raises(InvalidInput) as refused:
        export_model(Bare(), vectors(3), tmp_path / "out", request_inputs=once)
    assert words in refused.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_host_takes_a_user_once_and_refuses_other_batches(place, towers, tmp_path, machine, toolbox):
    source = ingest_directory(FileArtifactStore(tmp_path / "store"), place / "towers")
    machine.store_uri = (tmp_path / "store").as_uri()
    host = machine.start_host("towers")
    hold = {"model": "click", "part": "towers", "engine": "torch", "snapshot": 1, "generations": (1,)}
    host.hold(HostedSnapshot(**hold, digest=source.manifest.digest, uri=source.uri))
    assert [ready.part for ready in host.settle().ready] == ["towers"], host.state()
    answer = toolbox.decode(host.infer_part("towers", 1, request(6)))
    check_alike({name: tensor.data for name, tensor in answer.outputs.items()}, towers.infer(repeated(request(6))))
    refused = host.infer_part("towers", 1, {**request(6), "user": np.zeros(2, np.int64)})
    assert refused.status_code == 400
    assert "one batch size >= 1 in dimension 0; user, history may have 1, got" in refused.json()["error"]
