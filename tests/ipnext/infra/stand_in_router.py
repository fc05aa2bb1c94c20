"""A router that asks every part of the chosen generation once, in order, and tells who answered."""

import argparse
import asyncio
import json
import signal
from collections import defaultdict
from pathlib import Path

import aiohttp
from aiohttp import web

FOLLOW_SECONDS = 0.02
ASK_LIMIT = aiohttp.ClientTimeout(total=60)


class Router:
    def __init__(self, region, path, session):
        self.region = region
        self.path = path
        self.session = session
        self.table = {"revision": 0, "models": []}
        self.counts = defaultdict(lambda: {"requests": 0, "errors": 0, "in_flight": 0})
        self.turn = 0

    async def follow(self):
        seen = None
        while True:
            status = self.path.stat()
            if (status.st_ino, status.st_mtime_ns) != seen:
                seen = (status.st_ino, status.st_mtime_ns)
                self.table = json.loads(self.path.read_bytes())
            await asyncio.sleep(FOLLOW_SECONDS)

    async def state(self, _):
        traffic = [{"model": m, "generation": g, **count} for (m, g), count in self.counts.items()]
        shadows = [
            {"model": m["model"], "generation": m["shadow"]["served"]["generation"], "seed": m["shadow"]["seed"]}
            for m in self.table["models"]
            if m.get("shadow")
        ]
        return web.json_response({"revision": self.table["revision"], "traffic": traffic, "shadows": shadows})

    async def live(self, _):
        return web.json_response({"live": True})

    async def infer(self, request):
        name = request.match_info["model"]
        model = next((model for model in self.table["models"] if model["model"] == name), None)
        if model is None:
            return web.json_response({"error": "router: unknown model"}, status=404)
        asked = request.headers.get("x-ipnext-generation")
        served = {str(served["generation"]): served for served in model["served"]}
        if asked not in served:
            return web.json_response({"error": f"router: {asked} not served"}, status=404)
        count = self.counts[name, int(asked)]
        count["in_flight"] += 1
        try:
            status, body = await self.walk(model, served[asked], await request.json())
        finally:
            count["in_flight"] -= 1
        count["requests"] += 1
        count["errors"] += status >= 500
        headers = {"x-ipnext-generation": asked, "x-ipnext-region": self.region}
        told = {name: request.headers.get(f"x-ipnext-{name}-by") for name in ("forwarded", "chosen")}
        told["steering"] = {n.lower(): v for n, v in request.headers.items() if n.lower().startswith("x-ipnext-")}
        return web.json_response({**body, **told}, status=status, headers=headers)

    async def walk(self, model, served, body):
        """The whole request again, a few times, when a host is not ready for it."""
        tried = set()
        for _ in range(3):
            answers = {}
            for part in served["snapshots"]:
                answers[part] = await self.ask(model, part, served["generation"], body, tried)
            if None not in answers.values():
                return 200, {"parts": answers, "region": self.region}
        return 503, {"error": "router: no host"}

    async def ask(self, model, part, generation, body, tried):
        fitting = [e["url"] for e in model["endpoints"] if e["part"] == part and generation in e["generations"]]
        fitting = [url for url in fitting if url not in tried] or fitting
        if not fitting:
            return None
        self.turn += 1
        host = fitting[self.turn % len(fitting)]
        url = f"{host}/parts/{model['model']}/{part}/infer"
        try:
            async with self.session.post(url, json=body, headers={"x-ipnext-generation": str(generation)}) as answer:
                if answer.status == 200:
                    return await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        tried.add(host)
        return None


async def main():
    parser = argparse.ArgumentParser()
    for name in ("--port", "--region", "--table"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with aiohttp.ClientSession(timeout=ASK_LIMIT) as session:
        router = Router(arguments.region, Path(arguments.table), session)
        app = web.Application()
        app.router.add_get("/control/state", router.state)
        app.router.add_get("/v2/health/live", router.live)
        app.router.add_post("/v2/models/{model}/infer", router.infer)
        app.router.add_post("/v2/models/{model}/versions/{version}/infer", router.infer)
        following = asyncio.create_task(router.follow())
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(arguments.port)).start()
        await ended.wait()
        following.cancel()
        await runner.cleanup()


asyncio.run(main())
