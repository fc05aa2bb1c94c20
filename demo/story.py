"""The story of `ipnext demo`: a real ranking model from its training to its replanning, told step by step."""

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from demo import dataset, ranker, telling
from demo.load import Answers, SteadyLoad, served_scores
from demo.report import Report
from ipnext.client import Client
from ipnext.errors import IPnextError
from ipnext.model.api.resources import ChangeView
from ipnext.model.fleet import FleetManifest
from ipnext.model.lifecycle.changes.change import ChangeState
from serving.export import export_model

MODEL = "movie-ranker"
MANIFEST = Path(__file__).with_name("movie-ranker.yaml")
BATCH = 500
"""Rows a request when the whole test split is scored."""
SEED = 7
FIRST_WINDOW = (0.0, 0.6)
SECOND_WINDOW = (0.6, 0.8)
TEST_WINDOW = (0.8, 1.0)
SMALL_SUPPLY = 1.0
"""Units of cpu that the first region keeps when capacity is taken away."""


class StoryFailed(IPnextError):
    """A step of the demo did not end as it must."""

    code = "StoryFailed"


class Story:
    """One run of the demo against a running platform. `endpoints` is the content of endpoints.json."""

    def __init__(self, console: Console, endpoints: Mapping[str, Any], workplace: Path) -> None:
        self._console = console
        self._client = Client(endpoints["api"])
        self._gateways: Mapping[str, str] = endpoints["gateways"]
        self._workplace = workplace
        self._data = dataset.load(dataset.dataset_directory())
        self._test = self._data.between(*TEST_WINDOW)
        torch.manual_seed(SEED)
        torch.set_num_threads(1)
        self._ranker = ranker.Ranker(self._data)
        self._answers = Answers()
        self._began = time.monotonic()

    def tell(self) -> Report:
        """Run all steps in order. Raises StoryFailed if one does not end as it must."""
        offline = self._train(1, FIRST_WINDOW)
        first_seconds = self._first_publish()
        served = self._score_served(offline, 1)
        with SteadyLoad(self._gateways, MODEL, self._test) as load:
            self._answers = load.answers
            time.sleep(1.0)
            offline_2 = self._train(2, SECOND_WINDOW)
            refresh_seconds = self._refresh()
            served_2 = self._score_served(offline_2, 2)
            refused = self._publish_broken()
            rollback_seconds = self._roll_back()
            plan = self._replan()
            time.sleep(1.0)
        self._console.print(telling.answers_table(self._answers))
        latencies = np.array(self._answers.latencies_seconds or [math.inf])
        return Report(
            generations=len(self._client.generations(MODEL)),
            requests=self._answers.requests,
            failed=self._answers.failed,
            mixed=self._answers.mixed,
            auc_offline=offline,
            auc_served=min(served.values(), key=lambda auc: -abs(auc - offline)),
            auc_served_by_region=served,
            auc_offline_generation_2=offline_2,
            auc_served_generation_2=min(served_2.values(), key=lambda auc: -abs(auc - offline_2)),
            refused_reason=str(refused.reason.value if refused.reason else ""),
            refused_message=refused.message,
            rollback_seconds=rollback_seconds,
            replan_moves=plan["moves"],
            replan_cost_per_hour=(plan["before"], plan["after"]),
            publish_to_serving_seconds=refresh_seconds,
            first_publish_to_serving_seconds=first_seconds,
            latency_p50_seconds=float(np.quantile(latencies, 0.5)),
            latency_p99_seconds=float(np.quantile(latencies, 0.99)),
            answers_by_generation=dict(self._answers.by_generation),
            failures=tuple(self._answers.failures),
            total_seconds=time.monotonic() - self._began,
        )

    def _step(self, number: int, title: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{number}. {title}", align="left")

    def _train(self, run: int, window: tuple[float, float]) -> float:
        """Train (on), export both parts, score offline. Returns the AUC on the test split."""
        rows = self._data.between(*window)
        self._step(2 * run - 1, "Train a DLRM-like ranker on ml-100k" if run == 1 else "Train on with newer ratings")
        with Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=self._console
        ) as bar:
            task = bar.add_task(f"training run {run}: {len(rows):,} ratings, by time", total=1)
            for loss in ranker.train(self._ranker, rows, epochs=1, seed=SEED + run):
                bar.update(task, advance=1, description=f"training run {run}: loss {loss:.4f}")
        self._ranker.mark(run)
        auc = ranker.auc(self._test, ranker.score(self._ranker, self._test, batch=BATCH))
        self._console.print(f"offline AUC on the last {len(self._test):,} ratings: [bold]{auc:.6f}")
        return auc

    def _export(self, name: str) -> Mapping[str, Path]:
        """Write a snapshot of each part: what a training job does at its end."""
        base = self._workplace / "snapshots" / name
        shutil.rmtree(base, ignore_errors=True)
        few = {k: torch.from_numpy(v) for k, v in self._test.rows(slice(0, 16)).tensors().items()}
        sparse, dense = self._ranker.sparse, self._ranker.dense
        export_model(sparse, {"ids": few["ids"], "genres": few["genres"]}, base / "sparse")
        with torch.no_grad():
            looked_up = sparse(few["ids"], few["genres"])
        inputs = {
            "features": few["features"],
            "embeddings": looked_up["embeddings"],
            "sparse_stamp": looked_up["stamp"],
        }
        export_model(dense, inputs, base / "dense")
        return {"sparse": base / "sparse", "dense": base / "dense"}

    def _first_publish(self) -> float:
        """Manifest, snapshots, and the run to Ready. Returns the seconds from publish to serving."""
        self._step(2, "Publish it: one manifest, two parts, two regions")
        self._client.apply(MANIFEST.read_text())
        parts = self._export("first")
        began = time.monotonic()
        self._finish(self._client.publish(MODEL, parts), ChangeState.DONE)
        seconds = time.monotonic() - began
        self._client.wait_ready(MODEL, timeout_seconds=30)
        self._console.print(telling.status_table(self._client.model(MODEL)))
        return seconds

    def _score_served(self, offline: float, generation: int) -> Mapping[str, float]:
        """Score the whole test split through every gateway and hold it against the offline AUC."""
        with self._console.status(f"scoring {len(self._test):,} rows through Envoy in each region"):
            scores = served_scores(self._gateways, MODEL, self._test, batch=BATCH)
        served = {region: ranker.auc(self._test, values) for region, values in scores.items()}
        for region, auc in served.items():
            self._console.print(
                f"generation {generation} served in {region}: AUC [bold]{auc:.6f}[/] (offline {offline:.6f})"
            )
        if any(abs(auc - offline) > 1e-6 for auc in served.values()):
            msg = f"the served AUC {served} differs from the offline one, {offline}"
            raise StoryFailed(msg)
        return served

    def _refresh(self) -> float:
        """Publish generation 2 under load."""
        self._step(4, "Publish generation 2 under steady load")
        parts = self._export("second")
        began = time.monotonic()
        self._finish(self._client.publish(MODEL, parts), ChangeState.DONE)
        seconds = time.monotonic() - began
        self._console.print(self._load_line())
        return seconds

    def _publish_broken(self) -> ChangeView:
        """Publish a snapshot with NaN weights, which must be refused before any traffic."""
        self._step(5, "Publish a broken snapshot (NaN weights)")
        weight = self._ranker.dense.get_parameter("top.0.weight")
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[0, 0] = math.nan
        parts = self._export("broken")
        with torch.no_grad():
            weight.copy_(kept)
        change = self._finish(self._client.publish(MODEL, parts), ChangeState.REFUSED)
        self._console.print(f"refused: [bold]{change.reason}[/]: {change.message}")
        return change

    def _roll_back(self) -> float:
        """Back to generation 1 while it is still warm."""
        self._step(6, "Roll back to generation 1")
        began = time.monotonic()
        self._finish(self._client.rollback(MODEL, generation=1), ChangeState.DONE)
        seconds = time.monotonic() - began
        self._console.print(f"all traffic on generation 1 after [bold]{seconds:.1f} s[/]. {self._load_line()}")
        return seconds

    def _replan(self) -> Mapping[str, Any]:
        """Take capacity away in the first region and let the planner move the model."""
        region = next(iter(self._gateways))
        self._step(7, f"Take capacity away in {region} and replan")
        fleet = self._client.fleet()
        supply = tuple(
            item.model_copy(update={"units": SMALL_SUPPLY}) if item.region == region else item
            for item in fleet.spec.supply
        )
        smaller = FleetManifest(
            api_version="ipnext/v1", kind="Fleet", spec=fleet.spec.model_copy(update={"supply": supply})
        )
        self._client.apply(smaller)
        with self._console.status("replanning and moving"):
            result = self._client.replan(wait=True, timeout_seconds=120)
        diff = self._client.plan_diff(result.plan_id or "")
        self._console.print(telling.diff_table(diff))
        self._console.print(self._load_line())
        if diff.empty:
            msg = "the replan changed nothing although capacity was taken away"
            raise StoryFailed(msg)
        return {"moves": diff.moves, "before": diff.cost_per_hour_before, "after": diff.cost_per_hour_after}

    def _finish(self, change: ChangeView, wanted: ChangeState) -> ChangeView:
        """Watch a change to its end; it must end as wanted."""
        with telling.watching(self._console, self._client, MODEL, change):
            done = self._client.wait_change(change.id, timeout_seconds=120)
        if done.state is not wanted:
            msg = f"change {done.id} ended {done.state}, not {wanted}: {done.reason} {done.message}"
            raise StoryFailed(msg)
        return done

    def _load_line(self) -> str:
        a = self._answers
        return f"so far {a.requests:,} requests, [bold]{a.failed} failed[/], [bold]{a.mixed} mixed"
