"""Gates and shadows on the whole platform.

A new generation that answers worse is taken back by itself, and no request fails meanwhile. With a shadow before the
transition no client even sees it.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ipnext.names import DEADLINE_HEADER
from serving.export import export_model
from serving.protocol.tensors import Tensor as Given
from serving.protocol.v2 import InferRequest, encode_request
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: NAME, owner: tests}
spec:
  parts:
    - {name: base, hardware: [{kind: cpu, units: 1, qps: 100}]}
    - {name: top, hardware: [{kind: cpu, units: 1, qps: 100}]}
  graph:
    nodes:
      - {name: base, part: base, inputs: {x: request.x}}
      - {name: top, part: top, inputs: {x: base.output}}
    outputs: {score: top.score}
  demand: [{region: us-east, qps: 50}, {region: eu-west, qps: 50}]
  latencyToleranceMs: 120
  rollout:
    canary: 0.4
    maxStep: 0.6
    holdSeconds: 1
    deadlineSeconds: 180
    gate:
      maxNonFiniteRate: 0.01
      maxLatencyMs: {p50: 150}
      maxDrift: 0.25
      minRequests: MINIMUM
      waitSeconds: 160
      onTooFew: fail
"""

ENOUGH = 60
"""Answers by which a gate judges, so many that the drift of equal predictions stays within the limit."""
FEW = 20
"""Of a slow generation: each of its answers takes a third of a second of processor time."""
SHADOW = """
  lifecycle:
    - stage: shadow
      before: transition
      settings: {share: 1.0, minRequests: 30, seconds: 600, maxDifference: {absolute: 0.1}}
"""

ASK_SECONDS = 0.1
"""Between two requests of a client: the processors are for the platform, too."""
ANSWER_SECONDS = 60
PATIENT = {DEADLINE_HEADER: str(ANSWER_SECONDS * 1000)}
"""A generation that is slow on purpose is to be slow on a busy machine, too, and not to fail."""


class Base(nn.Module):
    """x [B, 4] -> output [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Top(nn.Module):
    """x [B, 4] -> score [B]: finite while the sum of x is below `limit`; `work` products of large matrices besides."""

    def __init__(self, *, shift: float = 0.0, limit: float = 1e6, work: int = 0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.limit = nn.Parameter(torch.tensor(limit))
        self.large = nn.Parameter(torch.eye(512))
        self.work = work

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        total = x.sum(dim=1)
        product = self.large
        for _ in range(self.work):
            product = torch.tanh(product @ (self.large + total.mean() * 0))
        return {"score": torch.sigmoid(total) + torch.sqrt(self.limit - total) * 0 + self.shift + product.mean() * 0}


@dataclass
class Asking:
    """What the load saw."""

    asked: int = 0
    versions: set[str] = field(default_factory=set)
    """Generations that answered."""
    wrong: list[str] = field(default_factory=list)


class Scorer:
    """A model of two parts under load in both regions."""

    def __init__(self, platform: Any, root: Path) -> None:
        self.platform = platform
        self.client = platform.client
        self.name = f"scorer-{uuid4().hex[:6]}"
        self.root = root
        export_model(Base().eval(), {"x": torch.zeros(2, 4)}, root / "base")

    def apply(self, *, minimum: int = ENOUGH, more: str = "") -> None:
        """Want the model with a gate that judges by so many answers; changes nothing if it is as it was."""
        manifest = MANIFEST.replace("NAME", self.name).replace("MINIMUM", str(minimum))
        for applied in self.client.apply(manifest + more):
            if applied.change is not None:
                done = self.wait(applied.change)
                assert done.state == "done", done.message

    def publish(self, what: str, **top: Any) -> Any:
        return self.wait(self.submit(what, **top))

    def submit(self, what: str, **top: Any) -> Any:
        export_model(Top(**top).eval(), {"x": torch.zeros(2, 4)}, self.root / what)
        return self.client.publish(self.name, {"base": self.root / "base", "top": self.root / what})

    def wait(self, change: Any) -> Any:
        return self.client.wait_change(change.id, timeout_seconds=2 * PATIENCE_SECONDS)  # each wave waits for answers

    @contextmanager
    def load(self) -> Iterator[Asking]:
        """Two clients in each region ask one request after the other."""
        asking, stop = Asking(), threading.Event()
        regions = self.platform.endpoints["gateways"].values()
        threads = [
            threading.Thread(target=self._ask, args=(url, seed, asking, stop))
            for seed, url in enumerate([*regions, *regions])
        ]
        for thread in threads:
            thread.start()
        try:
            yield asking
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, url: str, seed: int, asking: Asking, stop: threading.Event) -> None:
        random = np.random.default_rng(seed)
        with httpx.Client(timeout=ANSWER_SECONDS + 5, trust_env=False) as client:
            while not stop.wait(ASK_SECONDS):
                x = random.standard_normal((1, 4)).astype(np.float32)
                encoded = encode_request(InferRequest({"x": Given("FP32", x)}, binary_output=True))
                target = f"{url}/v2/models/{self.name}/infer"
                try:
                    answer = client.post(target, content=encoded.body, headers={**encoded.headers, **PATIENT})
                except httpx.HTTPError as error:
                    asking.wrong.append(repr(error))
                    continue
                asking.asked += 1
                if answer.status_code != 200:
                    asking.wrong.append(f"{answer.status_code} {answer.text[:200]}")
                    continue
                length = int(answer.headers["inference-header-content-length"])
                asking.versions.add(json.loads(answer.content[:length])["model_version"])

    def serving(self) -> int | None:
        return self.client.model(self.name).status.serving_generation


@pytest.fixture(scope="module")
def platform(bare: Any) -> Any:
    return bare


@pytest.fixture(scope="module")
def scorer(platform: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    """Generation 1 serves. It has its gate too, so it is asked meanwhile, at first in vain."""
    scorer = Scorer(platform, tmp_path_factory.mktemp("scorer"))
    scorer.apply()
    with scorer.load():
        done = scorer.publish("first")
    assert done.state == "done", done.message
    yield scorer
    scorer.client.wait_change(scorer.client.delete(scorer.name).id, timeout_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("top", "minimum", "words"),
    [
        ({"shift": 2.0}, ENOUGH, ("drift of output 'score'", "of generation 1), allowed 0.25")),
        ({"limit": 0.5}, ENOUGH, ("non-finite answers of", "allowed 1.0%")),
        ({"work": 80}, FEW, ("p50 ", "allowed 150 ms")),
    ],
    ids=["shifted predictions", "NaN answers", "slow answers"],
)
def test_a_generation_that_answers_worse_is_rolled_back_at_its_canary(
    scorer: Scorer, top: dict[str, float], minimum: int, words: tuple[str, ...]
) -> None:
    before = scorer.serving()
    with scorer.load() as asking:
        scorer.apply(minimum=minimum)
        done = scorer.publish("-".join(top), **top)
    assert (done.state, done.reason) == ("rolled_back", "GateFailed"), done.message
    for word in words:
        assert word in done.message
    assert scorer.serving() == before
    assert scorer.client.transitions(scorer.name)[0].waves_done == 0
    assert asking.wrong == []
    assert asking.asked > 20


def test_a_generation_that_answers_alike_passes_all_gates(scorer: Scorer) -> None:
    with scorer.load() as asking:
        scorer.apply()
        done = scorer.publish("alike", shift=0.001)
    assert done.state == "done", done.message
    assert scorer.serving() == done.generation
    assert asking.wrong == []


def test_a_generation_that_answers_otherwise_is_refused_by_its_shadow_and_no_client_saw_it(scorer: Scorer) -> None:
    before = scorer.serving()
    with scorer.load() as asking:
        scorer.apply(more=SHADOW)
        change = scorer.submit("otherwise", shift=0.5)
        shadow = until(
            lambda: found if (found := scorer.client.change(change.id).shadow) and found.state != "planned" else None,
            why=lambda: f"a shadow: {scorer.client.change(change.id)}",
        )
        done = scorer.wait(change)
    assert (done.state, done.reason) == ("refused", "StageRefused"), done.message
    assert "absolute difference of output 'score' 0.5" in done.message
    assert "at quantile 0.99, allowed 0.1" in done.message
    assert shadow.generation == done.generation
    assert all(f"units of {region}/cpu" in shadow.takes for region in shadow.regions)
    assert (asking.wrong, asking.versions, scorer.serving()) == ([], {str(before)}, before)
    assert not any(done.generation in found.generations for found in scorer.client.model(scorer.name).deployments)
