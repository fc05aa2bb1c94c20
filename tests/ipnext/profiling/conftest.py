"""The mock engine in this process, behind a real socket."""

import importlib.util
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

MOCK = Path(__file__).parents[2] / "genai" / "support" / "mock_engine.py"


def mock_module():
    name = "ipnext_mock_engine"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, MOCK)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
async def start(listeners) -> AsyncIterator:
    """Start mock engines: `start(ttft_ms=5)` gives the engine, with its `url`."""
    runners = []

    async def start(**told):
        given = vars(mock_module().options(["--port", "0", "--model", "chat", "--blocks", "1000"])) | told
        engine = mock_module().Engine(types.SimpleNamespace(**given))
        runner = web.AppRunner(engine.routes(), handler_cancellation=True, access_log=None)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return engine

    yield start
    for runner in runners:
        await runner.cleanup()
