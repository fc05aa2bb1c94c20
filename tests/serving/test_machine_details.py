"""Errors of gateways say what failed, and not where on the machine."""

import orjson
import pytest

from ipnext.errors import Unavailable
from serving.http.messages import error_response
from serving.openai.errors import openai_error

TOLD = "part 'p': unix:///srv/state/run/03c9/router.sock ended while it had this request, as http://127.0.0.1:41233 had"


@pytest.mark.parametrize("form", [error_response, openai_error])
def test_an_error_names_no_path_and_no_inner_port(form):
    body = orjson.loads(form(Unavailable(TOLD)).body)["error"]
    message = body["message"] if isinstance(body, dict) else body
    assert message == ("part 'p': unix://…/router.sock ended while it had this request, as http://127.0.0.1:… had")
