"""`ipnext predict` sends a credential to gateways whose address the operator named, and to no address of an agent."""

import http.server
import json
import threading

import pytest
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.errors import InvalidInput
from ipnext.settings import platform_settings


@pytest.fixture
def gateway():
    """A gateway that requires a credential, and the credentials that it was sent."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            sent.append(self.headers["Authorization"])
            body = {"outputs": []} if sent[-1] else {"error": "a credential is needed"}
            self.send_response(200 if sent[-1] else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
        server.shutdown()
        thread.join()


@pytest.fixture
def predict(rooms, switchboard, monkeypatch, tmp_path):
    """Ask through region eu, whose agent reports one address and whose operator named another one, or none."""
    rooms.seed("ranker")
    monkeypatch.setenv("IPNEXT_API_KEY", rooms.admin_key)
    request = tmp_path / "request.json"
    request.write_text("{}")

    def call(*, reported, named=None, status):
        observe = rooms.infrastructure.observe
        monkeypatch.setattr(
            rooms.infrastructure,
            "observe",
            lambda *asked: observe(*asked).model_copy(update={"gateway_url": reported}),
        )
        rooms.settings = rooms.settings.model_copy(update={"gateways": {} if named is None else {"eu": named}})
        with switchboard.answering(rooms.app()) as url:
            monkeypatch.setenv("IPNEXT_API_URL", url)
            arguments = ["predict", "ranker", "--region", "eu", "-f", str(request), "-o", "json"]
            result = CliRunner().invoke(app, arguments)
        assert result.exit_code == status, result.output
        return result

    return call


def test_the_operators_gateway_is_sent_the_key_that_it_asks_for(rooms, predict, gateway):
    url, sent = gateway
    predict(reported="http://127.0.0.1:9", named=f"{url}/", status=0)
    assert sent == [None, f"Bearer {rooms.admin_key}"]


def test_an_address_that_only_an_agent_reports_is_sent_no_key(predict, gateway):
    url, sent = gateway
    refused = predict(reported=url, status=2)
    assert sent == [None]
    assert "IPNEXT_GATEWAYS" in refused.stderr
    assert url in refused.stderr


def test_gateways_have_to_be_urls():
    with pytest.raises(InvalidInput, match=r"IPNEXT_GATEWAYS.*region 'eu' needs the URL of its gateway"):
        platform_settings(gateways={"eu": "nowhere"})
