"""An API server double that listens on the loopback: the entry point of tests."""

import asyncio
import base64
import contextlib
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import uvicorn
import yaml

from tests.connections import end_connections
from tests.kubernetes.controllers.manager import ControllerManager, Makers
from tests.kubernetes.controllers.standard import standard_controllers
from tests.kubernetes.server.access import ADMINISTRATOR, Access
from tests.kubernetes.server.app import Api
from tests.kubernetes.server.certificates import authority, server_context
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.failures import Failures, Refusal
from tests.waiting import PATIENCE_SECONDS, until

T = TypeVar("T")
LOOPBACK = "127.0.0.1"


class ApiServer:
    """An API server in a thread of its own, with what a test does to it. The methods are for other threads."""

    def __init__(self, makers: Makers | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self.cluster = Cluster()
        self.token = secrets.token_hex(16)
        self.failures = Failures()
        self.api = Api(self.cluster, Access(self.cluster, {self.token: ADMINISTRATOR}), self.failures)
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        """Kept while the server is away, so that no other process takes it then."""
        self._thread = threading.Thread(target=self._run, name="kubernetes-api", daemon=True)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._manager = ControllerManager(self.cluster, standard_controllers() if makers is None else makers)
        self._controlling: asyncio.Task[None] | None = None
        with tempfile.TemporaryDirectory(prefix="ipnext-api-") as directory:
            self._context = server_context(*authority().write_server(Path(directory)))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(_end_tasks())
        self.loop.run_until_complete(end_connections(patient_turns=1))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def start_controllers(self) -> None:
        """Let controllers follow the objects."""
        self._controlling = self.call(lambda: self.loop.create_task(self._manager.run()))

    def stop_controllers(self) -> None:
        """Let objects stay as they are, as without a controller manager and a scheduler."""
        asyncio.run_coroutine_threadsafe(self._stop_controlling(), self.loop).result(PATIENCE_SECONDS)

    async def _stop_controlling(self) -> None:
        if self._controlling:
            self._controlling.cancel()
            await asyncio.wait([self._controlling])
            self._controlling = None

    @property
    def url(self) -> str:
        """Address of the API."""
        return f"https://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Begin to serve; returns once it listens."""
        self._thread.start()
        self.start_controllers()
        self.come_back()

    def stop(self) -> None:
        """Stop serving; returns once the thread has ended."""
        self.go_away()
        self.stop_controllers()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._reserved.close()
        assert not self._thread.is_alive()

    def call(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, done between two requests."""

        async def done() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(PATIENCE_SECONDS)

    def come_back(self) -> None:
        """Listen again, at the port of before."""
        listener = _bound(self.port)
        listener.listen(1024)
        self.call(lambda: self._serve(listener))
        until(lambda: self._server and self._server.started, why=lambda: "the API server did not start")

    def _serve(self, listener: socket.socket) -> None:
        config = uvicorn.Config(
            self.api.app,
            log_level="error",
            ws="none",
            lifespan="off",
            timeout_keep_alive=60,
            access_log=False,
            ssl_context_factory=lambda *_: self._context,
        )
        self._server = uvicorn.Server(config)
        self._serving = self.loop.create_task(self._server.serve(sockets=[listener]))

    def go_away(self) -> None:
        """Cut all connections and listen no more; the objects stay."""
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(PATIENCE_SECONDS)

    async def _end(self) -> None:
        server, serving = self._server, self._serving
        if server is None or serving is None:
            return
        server.should_exit = server.force_exit = True
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        tasks = list(self.api.watches.values())
        for task in tasks:
            task.cancel()
        await asyncio.wait([serving, *tasks])
        self._server = self._serving = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Be unreachable for a while."""
        self.go_away()
        try:
            yield
        finally:
            self.come_back()

    def expire(self, *, running: bool = False) -> None:
        """Forget events and pages: older versions get 410; `running`: open watches as well."""

        def forget() -> None:
            self.api.pages.expire()
            self.cluster.storage.expire(running=running)

        self.call(forget)

    def silence_watches(self) -> None:
        """Send nothing more on open watches, and keep their connections: half-open, as seen from the client."""
        self.call(lambda: setattr(self.failures, "is_silent", True))

    def end_watches(self) -> None:
        """Cut the connections of all watches."""

        def cut() -> None:
            for task in list(self.api.watches.values()):
                task.cancel()

        self.call(cut)

    def refuse(
        self, code: int, *, verbs: tuple[str, ...] = (), plurals: tuple[str, ...] = (), times: int | None = None
    ) -> Refusal:
        """Refuse requests with a status, and return the refusal, which counts them."""
        refusal = Refusal(code, frozenset(verbs), frozenset(plurals), times)
        self.call(lambda: self.failures.refusals.append(refusal))
        return refusal

    def hang(self, *, verbs: tuple[str, ...] = (), plurals: tuple[str, ...] = ()) -> Refusal:
        """Leave requests without an answer."""
        refusal = Refusal(0, frozenset(verbs), frozenset(plurals))
        self.call(lambda: self.failures.hangs.append(refusal))
        return refusal

    def recover(self) -> None:
        """Switch all failures off."""
        self.call(self.failures.lift)

    def admit(self, user: str) -> str:
        """Return a new token of a user, who may do what roles allow."""
        token = secrets.token_hex(16)
        self.call(lambda: self.api.access.tokens.update({token: user}))
        return token

    def revoke(self, token: str) -> None:
        """Accept a token no more."""
        self.call(lambda: self.api.access.tokens.pop(token))

    def kubeconfig(self, *, token: str | None = None, namespace: str = "default") -> Json:
        """Return the configuration of a client."""
        name = "double"
        cluster = {"server": self.url, "certificate-authority-data": base64.b64encode(authority().pem).decode()}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token or self.token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        }

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the administrator's configuration."""
        path.write_text(yaml.safe_dump(self.kubeconfig()))
        return path


def _bound(port: int) -> socket.socket:
    """Return a socket at a port, which others that do not listen may have, too."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((LOOPBACK, port))
    return found


async def _end_tasks() -> None:
    """Cancel whatever still runs: a task that is destroyed is reported in a later test."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@contextlib.contextmanager
def running_server(makers: Makers | None = None) -> Iterator[ApiServer]:
    """An API server that ends with the block; `makers`: of its controllers, if not the standard ones."""
    server = ApiServer(makers)
    server.start()
    try:
        yield server
    finally:
        server.stop()
