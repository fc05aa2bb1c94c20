"""`ipnext predict`: one request through a region's gateway, with the proof of what answered."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from ipnext.cli.command import Command, ModelName
from ipnext.cli.output import Form, Output, rows, write
from ipnext.cli.session import client_of
from ipnext.client import Client
from ipnext.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    IPnextError,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from ipnext.model.api.resources import RegionView
from ipnext.names import GENERATION_HEADER, REGION_HEADER, SNAPSHOTS_HEADER

REQUEST_SECONDS = 30.0
_KINDS: Mapping[int, type[IPnextError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


def predict(
    context: typer.Context,
    model: ModelName,
    file: Annotated[str, typer.Option("--file", "-f", help="Request as JSON, Open Inference Protocol V2; - is stdin.")],
    region: Annotated[str | None, typer.Option(help="Region of the gateway; else the first that answers.")] = None,
    generation: Annotated[int | None, typer.Option(min=1, help="Pin this generation.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Ask a model through a region's gateway. Shows which generation and snapshots answered, and where.

    A model that needs a credential is given the one that the API gets, if the operator named the gateway's address
    (IPNEXT_GATEWAYS).
    """
    client = client_of(context)
    answering = answering_region(client, region)
    gateway = answering.gateway_url
    headers = {} if generation is None else {GENERATION_HEADER: str(generation)}
    url = f"{gateway}/v2/models/{model}/infer"
    try:
        answer = httpx.post(
            url,
            json=_request_of(file),
            headers=headers,
            timeout=REQUEST_SECONDS,
            trust_env=False,
            auth=client.gateway_auth(answering),
            verify=client.trusted,
        )
    except httpx.TimeoutException as error:
        msg = f"the gateway at {gateway} did not answer in {REQUEST_SECONDS:g} s"
        raise DeadlineExceeded(msg) from error
    except httpx.TransportError as error:
        msg = f"no gateway answers at {gateway} ({error}); see `ipnext get regions`"
        raise Unavailable(msg) from error
    if answer.is_error:
        raise _refusal(answer)
    proof = {
        "generation": answer.headers.get(GENERATION_HEADER),
        "snapshots": answer.headers.get(SNAPSHOTS_HEADER),
        "region": answer.headers.get(REGION_HEADER),
    }
    write(proof | {"answer": answer.json()}, output, lambda: _tables(proof, answer.json()))


def answering_region(client: Client, region: str | None) -> RegionView:
    """Return a region with its gateway.

    Raises NotFound for an unknown region, Unavailable for one that does not answer.
    """
    regions = {each.region: each for each in client.regions()}
    if region is not None and region not in regions:
        msg = f"region {region!r} is not known; known: {', '.join(regions)}"
        raise NotFound(msg)
    for each in regions.values() if region is None else [regions[region]]:
        if each.gateway_url is not None:
            return each
    msg = f"{'no region' if region is None else f'region {region!r}'} answers; see `ipnext get regions`"
    raise Unavailable(msg) if regions else NotFound("there are no regions; apply a Fleet manifest first")


def _request_of(file: str) -> Any:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{file} holds no JSON request: {error}"
        raise InvalidInput(msg, field="file", value=file) from error


def _refusal(answer: httpx.Response) -> IPnextError:
    """Return the gateway's error: V2 carries it as {"error": "..."}."""
    try:
        text = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.text[:300] or "no text"
    return _KINDS.get(answer.status_code, IPnextError)(f"the gateway answered {answer.status_code}: {text}")


def _tables(proof: Mapping[str, Any], answer: Mapping[str, Any]) -> Iterable[Table | str]:
    yield f"generation {proof['generation']} ({proof['snapshots']}) in {proof['region']}\n"
    outputs = answer.get("outputs", [])
    lines = ((o.get("name"), o.get("datatype"), o.get("shape"), _short(o.get("data"))) for o in outputs)
    yield rows("", ("output", "datatype", "shape", "data"), lines)


def _short(data: object) -> str:
    text = json.dumps(data)
    return text if len(text) <= 120 else f"{text[:117]}..."


COMMANDS = (Command("predict", "Ask a model through a region's gateway.", predict),)
