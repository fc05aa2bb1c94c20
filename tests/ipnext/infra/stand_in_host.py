"""A host without torch: speaks the control contract, answers with who it is.

A digest that starts with "bad" fails to load. Setting `engine_url`: the address that it reports for its engine. Loading
takes as long as the settings `load_seconds` and `load_until` say, having at hand what is coming as long as
`fetch_seconds` and `fetch_until`; an answer comes not before the request's `until`. Each `until` is a file that a test
makes. `endless_state`: its state is blanks without an end. It listens on a port, or on the sockets of its callers.
"""

import argparse
import asyncio
import os
import signal
from hashlib import sha256
from pathlib import Path

from aiohttp import web

from ipnext.components.identity import Component
from ipnext.components.sockets import bind_socket


async def there(file):
    """Returns once the file is there; at once where none is named."""
    while file and not Path(file).exists():  # noqa: ASYNC110, ASYNC240 (a stand-in)
        await asyncio.sleep(0.01)


async def passed(settings, what):
    """Returns once `what` has taken as long as the settings say."""
    await asyncio.sleep(settings.get(f"{what}_seconds", 0))
    await there(settings.get(f"{what}_until"))


class Host:
    def __init__(self, name):
        self.name = name
        self.holds = []
        self.coming = []
        self.fetches = {}
        self.loaded = {}
        self.failures = {}
        self.loads = {}
        self.in_flight = 0
        self.draining = False
        self.stamped = None
        self.grown = []
        """What loads have taken: `grow_bytes` of the settings each."""

    async def put_holds(self, request):
        told = await request.json()
        self.holds, self.coming = told["holds"], told["coming"]
        self.stamped = sha256(told.get("stamp", "").encode()).hexdigest()
        for held in self.coming:
            if self.key(held) not in self.fetches:
                self.fetches[self.key(held)] = asyncio.create_task(passed(held["settings"], "fetch"))
        wanted = {self.key(held) for held in self.holds}
        for key in set(self.loaded) - wanted:
            print(f"unloads {key[2]}, drain {told['drain_seconds']:.2f} s", flush=True)  # noqa: T201 (a test reads the log)
            del self.loaded[key]
        for held in self.holds:
            if self.key(held) not in self.loads:
                self.loads[self.key(held)] = asyncio.create_task(self.load(held))
        for key in set(self.loads) - wanted:
            self.loads.pop(key).cancel()
        return web.Response(status=202)

    @staticmethod
    def key(held):
        return held["model"], held["part"], held["snapshot"]

    async def load(self, held):
        await passed(held["settings"], "load")
        self.grown.append(bytearray(b"x") * held["settings"].get("grow_bytes", 0))
        if held["digest"].startswith("bad"):
            self.failures[self.key(held)] = "broken on purpose"
        else:
            self.loaded[self.key(held)] = held["digest"]

    async def state(self, request):
        if any(held["settings"].get("endless_state") for held in self.holds):
            answer = web.StreamResponse()
            await answer.prepare(request)
            while True:
                await answer.write(bytes(b" " * 2**16))
        ready, loading, failures = [], [], []
        for held in self.holds:
            subject = {"model": held["model"], "part": held["part"], "snapshot": held["snapshot"]}
            if self.key(held) in self.failures:
                told = {"code": "LoadFailed", "message": self.failures[self.key(held)]}
                failures.append({**subject, "generations": held["generations"], **told})
                continue
            there = ready if self.key(held) in self.loaded else loading
            engine = {"url": held["settings"].get("engine_url")}
            there += [{**subject, **engine, "generation": generation} for generation in held["generations"]]
        for held in self.coming:
            if held["digest"].startswith("bad"):
                told = {"code": "LoadFailed", "message": "cannot be had"}
                subject = {"model": held["model"], "part": held["part"], "snapshot": held["snapshot"]}
                failures.append({**subject, "generations": held["generations"], **told})
        at_hand = [
            h["digest"] for h in self.coming if self.fetches[self.key(h)].done() and not h["digest"].startswith("bad")
        ]
        state = {"ready": ready, "loading": loading, "failures": failures, "fetched": at_hand}
        more = {"in_flight": self.in_flight, "draining": self.draining, "stamped": self.stamped}
        return web.json_response({**state, **more})

    async def drain(self, _):
        self.draining = True
        return web.Response()

    async def infer(self, request):
        if self.draining:
            print("asked while draining", flush=True)  # noqa: T201 (the test reads the log)
            return web.json_response({"error": "draining"}, status=503)
        model, part = request.match_info["model"], request.match_info["part"]
        generation = int(request.headers["x-ipnext-generation"])
        for held in self.holds:
            mine = (held["model"], held["part"]) == (model, part) and generation in held["generations"]
            if mine and self.key(held) in self.loaded:
                return await self.answer(request, held)
        return web.json_response({"code": "GenerationNotHeld", "message": "no"}, status=409)

    async def answer(self, request, held):
        self.in_flight += 1
        try:
            await there((await request.json()).get("until"))
            return web.json_response({"host": self.name, "pid": os.getpid(), "snapshot": held["snapshot"]})
        finally:
            self.in_flight -= 1


async def serve(given):
    parser = argparse.ArgumentParser()
    for name in ("--region", "--id", "--artifacts", "--cache"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--sockets", type=Path)
    parser.add_argument("--memory-bytes")
    arguments = parser.parse_args(given)
    host = Host(arguments.id)
    app = web.Application()
    app.router.add_put("/control/holds", host.put_holds)
    app.router.add_get("/control/state", host.state)
    app.router.add_post("/control/drain", host.drain)
    app.router.add_post("/parts/{model}/{part}/infer", host.infer)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    if arguments.sockets:
        for caller in (Component.AGENT, Component.ROUTER):
            await web.SockSite(runner, bind_socket(arguments.sockets, caller)).start()
    else:
        await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
    await ended.wait()
    host.draining = True
    while host.in_flight:  # noqa: ASYNC110 (a stand-in)
        await asyncio.sleep(0.01)
    await runner.cleanup()


def main(arguments=None):
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
