"""Whether answers are those that the OpenAPI schema documents: status, type, headers and body."""

from collections.abc import Sequence
from typing import Any

import httpx
import requests
import schemathesis
from fastapi import FastAPI
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.schemas import OpenApiSchema


class Conformance:
    """The schema of an application, by which answers are judged."""

    def __init__(self, app: FastAPI) -> None:
        self.schema: OpenApiSchema = schemathesis.openapi.from_dict(app.openapi())

    def faults(self, request: httpx.Request, answer: httpx.Response) -> Sequence[str]:
        """What of an answer, which was read whole, is not as documented.

        Nothing for a path or method that no endpoint has.
        """
        operation = self.schema.find_operation_by_path(request.method, request.url.path)
        if operation is None:
            return ()
        where = f"{operation.label} answered {answer.status_code}"
        documented = operation.definition.raw["responses"]
        if str(answer.status_code) not in documented:
            return (f"{where}; documented: {', '.join(documented)}. {answer.text[:300]}",)
        try:
            operation.validate_response(_response(request, answer))
        except FailureGroup as group:
            return tuple(f"{where}: {each}" for each in group.exceptions)
        except Failure as failure:
            return (f"{where}: {failure}",)
        return ()


def _response(request: httpx.Request, answer: httpx.Response) -> Any:
    return Response(
        status_code=answer.status_code,
        headers={name: answer.headers.get_list(name) for name in answer.headers},
        content=answer.content,
        request=requests.Request(request.method, str(request.url)).prepare(),
        elapsed=0.0,
        verify=False,  # a field of the record: nothing is asked
    )
