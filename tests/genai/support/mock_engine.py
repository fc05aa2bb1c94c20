"""An OpenAI server that generates nothing real: `python mock_engine.py --port P --model M`.

Stands beside vLLM in tests.

It answers as vLLM does where a router can see it: routes, streams, errors, metrics, a prefix cache by blocks of words,
and a request that ends when its client leaves. Text is the word `NAME-N` for the N-th token, of an adapter `ADAPTER-N`,
behind the prompt where the request has `echo`; with `--weights DIR` the name is that of the weights in there. The
vector of a text is its length, its words, 1, and the stamp; with a checkpoint the stamp is that of its config.json, and
the name has it at its end; if it has none, the name is that of its weights. With VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 it
takes and drops adapters, with VLLM_SERVER_DEV_MODE=1 it pauses and takes other weights. With `--connector nixl` it
hands prompts over, and takes them, by the fields of vLLM's NixlConnector. With `--until FILE` a stream of ENDLESS
tokens ends once the file is there.
"""

import argparse
import asyncio
import base64
import hashlib
import itertools
import json
import os
import struct
import time
import uuid
from collections import OrderedDict
from pathlib import Path

from aiohttp import web

BLOCK_WORDS = 16
DEFAULT_TOKENS = 16
ENDLESS = 5000


class PrefixCache:
    """Blocks of prompts, the least used of which leaves first; how many blocks of a prompt were there."""

    def __init__(self, blocks):
        self._blocks = OrderedDict()
        self._limit = blocks
        self.queries = self.hits = 0

    def clear(self):
        self._blocks.clear()

    def take(self, words):
        """Tokens of the prompt that were cached; all of it is cached afterwards."""
        chain, cached, unbroken = b"", 0, True
        for start in range(0, len(words) - BLOCK_WORDS + 1, BLOCK_WORDS):
            chain = hashlib.sha256(chain + " ".join(words[start : start + BLOCK_WORDS]).encode()).digest()
            unbroken = unbroken and chain in self._blocks
            cached += BLOCK_WORDS * unbroken
            self._blocks[chain] = True
            self._blocks.move_to_end(chain)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)
        self.queries += len(words)
        self.hits += cached
        return cached


class Gate:
    """Lets requests in while it is open; a pause waits for those that are in."""

    def __init__(self):
        self.open = asyncio.Event()
        self.open.set()
        self.inside = 0

    async def __aenter__(self):
        await self.open.wait()
        self.inside += 1

    async def __aexit__(self, *_):
        self.inside -= 1

    async def close(self, *, wait):
        self.open.clear()
        while wait and self.inside:  # noqa: ASYNC110 - a stand-in
            await asyncio.sleep(0.005)


class Engine:
    def __init__(self, arguments):
        self.stamp = stamp_of(arguments)
        self.name = engine_name(arguments, self.stamp)
        self.version, self.beside = "default", arguments.beside
        self.gate = Gate()
        self.reload_seconds, self.reloads = arguments.reload_ms / 1000, not arguments.broken_reload
        self.model, self.served = arguments.model, arguments.served or arguments.model
        self.first_seconds = arguments.ttft_ms / 1000
        self.token_seconds = arguments.itl_ms / 1000
        self.prompt_seconds = arguments.prompt_us_per_token / 1e6
        self.slots = asyncio.Semaphore(arguments.max_num_seqs)
        self.cache = PrefixCache(arguments.blocks)
        self.connector, self.until = arguments.connector, arguments.until
        self.taken_over = 0
        self.adapters = {}
        """Name -> path."""
        self.running = self.waiting = self.aborted = self.finished = self.generated = 0

    def routes(self):
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.completions)
        app.router.add_post("/v1/chat/completions/batch", self.completions)
        app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_post("/tokenize", self.tokenize)
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1":
            app.router.add_post("/v1/load_lora_adapter", self.load_adapter)
            app.router.add_post("/v1/unload_lora_adapter", self.unload_adapter)
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            app.router.add_post("/pause", self.pause)
            app.router.add_post("/resume", self.resume)
            app.router.add_get("/is_paused", self.is_paused)
            app.router.add_post("/collective_rpc", self.rpc)
            app.router.add_post("/update_weight_version", self.update_version)
            app.router.add_get("/weight_info", self.weight_info)
            app.router.add_post("/reset_prefix_cache", self.reset_cache)
        return app

    async def load_adapter(self, request):
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters and not body.get("load_inplace"):
            return refused(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").exists():
            return refused(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        self.adapters[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, request):
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def pause(self, request):
        await self.gate.close(wait=request.query.get("mode") == "wait")
        return web.json_response({"status": "paused"})

    async def resume(self, _):
        self.gate.open.set()
        return web.json_response({"status": "resumed"})

    async def is_paused(self, _):
        return web.json_response({"is_paused": not self.gate.open.is_set()})

    async def rpc(self, request):
        body = await request.json()
        if "method" not in body:
            return web.json_response({"detail": "Missing 'method' in request body"}, status=400)
        await asyncio.sleep(self.reload_seconds)
        if not self.reloads:
            return web.json_response({"error": "the weights do not fit"}, status=500)
        self.name = name_of(body["kwargs"]["weights_path"])
        return web.json_response({"results": [None]})

    async def update_version(self, request):
        self.version = (await request.json())["new_version"]
        return web.json_response({"success": True, "new_version": self.version})

    async def weight_info(self, _):
        return web.json_response({"weight_version": self.version})

    async def reset_cache(self, _):
        self.cache.clear()
        return web.json_response({"success": True})

    async def health(self, _):
        return web.Response()

    async def models(self, _):
        card = {"id": self.served, "object": "model", "created": 0, "owned_by": "mock", "max_model_len": 2048}
        own = [card | {"id": name} for name in dict.fromkeys((self.served, self.model))]
        beside = [
            {"id": name, "object": "model", "created": 0, "owned_by": "mock", "root": path, "parent": self.served}
            for name, path in self.adapters.items()
        ]
        beside += [card | {"id": self.beside, "parent": self.served}] if self.beside else []
        return web.json_response({"object": "list", "data": [*own, *beside]})

    async def metrics(self, _):
        labels = f'{{engine="0",model_name="{self.served}"}}'
        values = {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": min(1.0, self.running / 16),
            "prefix_cache_queries_total": self.cache.queries,
            "prefix_cache_hits_total": self.cache.hits,
            "external_prefix_cache_hits_total": self.taken_over,
            "generation_tokens_total": self.generated,
            "num_preemptions_total": 0,
        }
        lines = [f"vllm:{name}{labels} {value}" for name, value in values.items()]
        lines += [f"mock:aborted_total{labels} {self.aborted}", f"mock:finished_total{labels} {self.finished}"]
        return web.Response(text="\n".join(lines) + "\n")

    async def tokenize(self, request):
        words = prompt_words(await request.json())
        return web.json_response({"count": len(words), "tokens": list(range(len(words))), "max_model_len": 2048})

    async def embeddings(self, request):
        body = await request.json()
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [[float(len(text)), float(len(text.split())), 1.0, self.stamp] for text in given]
        if body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack("<4f", *vector)).decode() for vector in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response(
            {"id": new_id("embd"), "object": "list", "model": self.named(body["model"]), "data": data, "usage": usage}
        )

    async def completions(self, request):
        try:
            body = await request.json()
        except ValueError as error:
            return refused(400, "BadRequestError", f"the body is not JSON: {error}")
        model = body.get("model")
        if model not in {self.model, self.served, *self.adapters}:
            return refused(404, "NotFoundError", f"The model `{model}` does not exist.")
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_TOKENS
        if not isinstance(wanted, int) or wanted < 1:
            return refused(400, "BadRequestError", f"max_tokens must be at least 1, got {wanted}.")
        words = prompt_words(body)
        self.waiting += 1
        try:
            await self.gate.__aenter__()
        finally:
            self.waiting -= 1
        try:
            return await self.answered(request, body, wanted, words)
        finally:
            await self.gate.__aexit__()

    async def answered(self, request, body, wanted, words):
        chat = request.path.startswith("/v1/chat")
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            cached = self.taken(words, body.get("kv_transfer_params") or {})
            await asyncio.sleep(self.first_seconds + self.prompt_seconds * (len(words) - cached))
            usage = {"prompt_tokens": len(words), "completion_tokens": wanted, "total_tokens": len(words) + wanted}
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
            head = {"id": new_id("chatcmpl" if chat else "cmpl"), "created": int(time.time())}
            head["model"] = self.named(body["model"])
            if body.get("stream"):
                response = await self.streamed(request, body, head, wanted, usage)
            else:
                response = await self.whole(body, head | self.handed(body), wanted, usage, chat)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1
            self.slots.release()
        self.finished += 1
        return response

    def taken(self, words, transfer):
        """Tokens of the prompt that need not be computed: cached, or all where another engine has handed them over."""
        cached = self.cache.take(words)
        if not self.connector or not transfer.get("do_remote_prefill"):
            return cached
        self.taken_over += len(words) - cached
        return len(words)

    def handed(self, body):
        """What vLLM's answer says of keys and values that it keeps for another engine."""
        transfer = body.get("kv_transfer_params") or {}
        if not self.connector or not transfer.get("do_remote_decode"):
            return {"kv_transfer_params": None}
        place = {"remote_engine_id": self.name, "remote_host": "127.0.0.1", "remote_port": 5600, "tp_size": 1}
        blocks = {"remote_block_ids": [[1, 2]], "remote_request_id": new_id("cmpl")}
        return {"kv_transfer_params": {"do_remote_prefill": True, "do_remote_decode": False, **place, **blocks}}

    async def whole(self, body, head, wanted, usage, chat):
        await asyncio.sleep(self.token_seconds * (wanted - 1))
        self.generated += wanted
        text = echoed(body) + " ".join(f"{self.word(head)}-{number}" for number in range(wanted))
        choice = {"index": 0, "finish_reason": "length", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        kind = "chat.completion" if chat else "text_completion"
        choices = [choice | {"index": place} for place in range(conversations(body))]
        return web.json_response(head | {"object": kind, "choices": choices, "usage": usage})

    def word(self, head):
        return self.name if head["model"] == self.served else head["model"]

    def named(self, model):
        """What an answer says of the model that was asked for: its first name."""
        return self.served if model == self.model else model

    async def streamed(self, request, body, head, wanted, usage):
        chat = request.path.startswith("/v1/chat")
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        kind = "chat.completion.chunk" if chat else "text_completion"
        for number in itertools.count():
            if number:
                await asyncio.sleep(self.token_seconds)
            self.generated += 1
            last = self.until.exists() if self.until and wanted >= ENDLESS else number == wanted - 1
            choice = {"index": 0, "finish_reason": "length" if last else None, "logprobs": None}
            text = f"{' ' if number else echoed(body)}{self.word(head)}-{number}"
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            await self.event(response, head | {"object": kind, "choices": [choice]})
            if last:
                break
        if (body.get("stream_options") or {}).get("include_usage"):
            await self.event(response, head | {"object": kind, "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def event(self, response, value):
        await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")


def name_of(directory):
    """The name of the weights in a directory."""
    return hashlib.sha256((Path(directory) / "model.safetensors").read_bytes()).hexdigest()[:6]


def engine_name(arguments, stamp):
    """By which an engine says what it was started with."""
    if arguments.weights is not None:
        return name_of(arguments.weights)
    if arguments.checkpoint is None:
        return arguments.name
    return f"{arguments.name}{stamp:g}" if stamp else name_of(arguments.checkpoint)


def conversations(body):
    """How many a request has: more than one at vLLM's path for a batch alone."""
    messages = body.get("messages") or [{}]
    return len(messages) if isinstance(messages[0], list) else 1


def prompt_words(body):
    """Words of the prompt, which stand for its tokens."""
    if "messages" in body:
        flat = (m for given in body["messages"] for m in (given if isinstance(given, list) else [given]))
        texts = [message.get("content") or "" for message in flat]
        return " ".join(t if isinstance(t, str) else json.dumps(t) for t in texts).split()
    prompt = body.get("prompt", "")
    return [str(token) for token in prompt] if isinstance(prompt, list) else prompt.split()


def echoed(body):
    """What a completion says before its own words."""
    return body["prompt"] if body.get("echo") else ""


def stamp_of(arguments):
    """The number by which a test tells snapshots apart."""
    if arguments.checkpoint is None:
        return arguments.stamp
    return float(json.loads((arguments.checkpoint / "config.json").read_text()).get("stamp", 0))


def refused(status, kind, message):
    """OpenAI's error form."""
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status=status
    )


def new_id(kind):
    return f"{kind}-{uuid.uuid4().hex}"


def options(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int)
    parser.add_argument("--socket")
    parser.add_argument("--model", required=True)
    parser.add_argument("--served", help="name that answers have; it answers to that of --model too")
    parser.add_argument("--name", default="word")
    parser.add_argument("--stamp", type=float, default=0.0)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--reload-ms", type=float, default=50.0)
    parser.add_argument("--broken-reload", action="store_true")
    parser.add_argument("--beside", default=None)
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--itl-ms", type=float, default=2.0)
    parser.add_argument("--prompt-us-per-token", type=float, default=0.0)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--connector", choices=["nixl"], default=None)
    parser.add_argument("--until", type=Path, default=None)
    return parser.parse_args(arguments)


def main():
    arguments = options()

    async def app():  # made in the loop that runs it
        return Engine(arguments).routes()

    where = {"path": arguments.socket} if arguments.socket else {"host": "127.0.0.1", "port": arguments.port}
    web.run_app(app(), **where, print=None, access_log=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
