"""Several conversations in one request: `/v1/chat/completions/batch`, as in vLLM 0.32. Used by serving.openai.routes.

`messages` is a list of conversations; the answer has one choice for each, by their index. One engine answers all of
them.
"""

from collections.abc import Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput

BATCH_PATH: Final = "/v1/chat/completions/batch"
_LEFT_OUT: Final = ("stream", "tools")
"""Fields that vLLM accepts here but ignores."""


def check_batch(body: Mapping[str, Any]) -> None:
    """Raise InvalidInput if the request has fields that an engine ignores here instead of refusing them."""
    for field in _LEFT_OUT:
        if body.get(field):
            msg = (
                f"{field}: {BATCH_PATH} answers whole and without tools; leave it out, or ask each conversation "
                "at /v1/chat/completions"
            )
            raise InvalidInput(msg, field=field, value=body[field])
