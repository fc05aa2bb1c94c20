"""An anchor: FastAPI as its own pages write it, a pydantic model in and out.

No access log, in the event loop (no thread pool).
"""

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.peers.given import LOOPBACK, PORT, model, scores

MODULE = model()
app = FastAPI()


class Asked(BaseModel):
    """A request."""

    ids: list[list[int]]
    dense: list[list[float]]


class Scored(BaseModel):
    """Its answer."""

    score: list[float]


@app.post("/score")
async def score(asked: Asked) -> Scored:
    """Scores."""
    return Scored(score=scores(MODULE, asked.ids, asked.dense))


if __name__ == "__main__":
    uvicorn.run(app, host=LOOPBACK, port=PORT, log_level="warning", access_log=False, timeout_keep_alive=60)
