"""Ray Serve: its own JSON. One replica with one processor, one proxy, no request log, no dashboard."""

import signal

import orjson
import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving.peers.given import BATCH_ROWS, BATCH_WAIT_SECONDS, BATCHING, LOOPBACK, PORT, model


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 1},
    logging_config={"enable_access_log": False},
)
class Served:
    """The module behind Ray Serve's interface."""

    def __init__(self) -> None:
        self.module = model()

    async def __call__(self, request: Request) -> Response:
        """Scores."""
        asked = orjson.loads(await request.body())
        ids, dense = torch.tensor(asked["ids"]), torch.tensor(asked["dense"], dtype=torch.float32)
        score = await self.joined((ids, dense)) if BATCHING else self.score(ids, dense)
        return Response(orjson.dumps({"score": score.tolist()}), media_type="application/json")

    def score(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """One forward pass."""
        with torch.inference_mode():
            found: torch.Tensor = self.module(ids, dense)
        return found

    @serve.batch(max_batch_size=BATCH_ROWS, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def joined(self, asked: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """One forward pass for several requests."""
        ids, dense = zip(*asked, strict=True)
        return list(self.score(torch.cat(ids), torch.cat(dense)).split([len(rows) for rows in ids]))


if __name__ == "__main__":
    ray.init(
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=100_000_000,
        _node_ip_address=LOOPBACK,
        log_to_driver=False,
    )
    serve.start(http_options=HTTPOptions(host=LOOPBACK, port=PORT, keep_alive_timeout_s=60))
    application = Served.bind()  # type: ignore[attr-defined]  # what the decorator adds
    serve.run(application, route_prefix="/", name="dlrm")
    signal.pause()
