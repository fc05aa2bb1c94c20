"""How the client reads what an agent answers."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ipnext import errors
from ipnext.infra.local_process import LocalProcessInfrastructure
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def answering(listeners):
    """A server that gives one answer to everything; an infrastructure that speaks to it."""
    opened = []

    def answering(status, body, delay=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if delay:
                    delay.wait(PATIENCE_SECONDS)
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        agents, seconds = {"eu": f"http://127.0.0.1:{server.server_port}/"}, 0.3 if delay else 60.0
        infra = LocalProcessInfrastructure(agents, timeout_seconds=seconds)
        opened.append((server, thread, infra))
        return infra

    yield answering
    for server, thread, infra in opened:
        infra.close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", [errors.StaleWrite, errors.InvalidInput, errors.ArtifactMissing, errors.LoadFailed])
def test_an_error_comes_back_as_itself(answering, kind):
    body = f'{{"code": "{kind.code}", "message": "what was wrong"}}'.encode()
    with pytest.raises(kind, match="what was wrong") as caught:
        answering(kind.http_status, body).observe("eu")
    assert type(caught.value) is kind


@pytest.mark.parametrize(("status", "retryable"), [(500, False), (502, True), (503, True), (504, True), (404, False)])
def test_an_error_without_a_code_is_judged_by_its_status_and_names_the_region(answering, status, retryable):
    with pytest.raises(errors.IPnextError, match=f"region 'eu' answered {status}: oops") as caught:
        answering(status, b"oops").observe("eu")
    assert caught.value.retryable is retryable


def test_an_agent_that_does_not_answer_in_time_is_unavailable(answering):
    release = threading.Event()
    infra = answering(200, b"{}", delay=release)
    with pytest.raises(errors.Unavailable, match="region 'eu'"):
        infra.observe("eu")
    release.set()
