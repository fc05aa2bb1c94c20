"""Who may speak to the embedded Temporal: components by gRPC, and no page in a browser by its HTTP API."""

import httpx
import psutil
import pytest

from tests.processes import command_line

PATHS = (
    ("GET", "/api/v1/namespaces"),
    ("POST", "/api/v1/namespaces/default/workflows/forged"),
    ("POST", "/api/v1/namespaces/default/batch-operations/forged"),
)


def listening_ports(address):
    """Of the server at this address."""
    port = address.rpartition(":")[2]
    (server,) = (
        one
        for one in psutil.process_iter()
        if "start-dev" in (words := command_line(one)) and f"--port {port}" in words
    )
    return {found.laddr.port for found in server.net_connections("inet") if found.status == psutil.CONN_LISTEN}


def answers(port, host, origin):
    """Status of each path, by plain HTTP as a page asks; nothing from a listener that speaks none."""
    headers = {
        "content-type": "text/plain",
        **({"host": host} if host else {}),
        **({"origin": origin} if origin else {}),
    }
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=60) as client:
        for method, path in PATHS:
            try:
                yield path, client.request(method, path, content="{}").status_code
            except httpx.HTTPError:
                continue


@pytest.mark.parametrize(
    ("host", "origin"),
    [("", ""), ("", "http://localhost:9999"), ("evil.example", "http://evil.example"), ("localhost", "")],
)
def test_the_http_api_answers_to_no_name_that_a_page_can_give(own_temporal, host, origin):
    found = [answer for port in listening_ports(own_temporal) for answer in answers(port, host, origin)]
    served = [(path, status) for path, status in found if status < 300 or status in {400, 409, 501}]
    assert served == []
    assert (PATHS[0][1], 403) in found, "the HTTP API was found, and refuses"
