"""Detection of requests whose generation was chosen by a gateway's weights, not by the client's pin."""

import re
from typing import Final

from ipnext.model.value import NAME_PATTERN
from ipnext.names import CHOSEN_BY_WEIGHT, CHOSEN_HEADER, FORWARDED_HEADER
from serving.http.messages import Request

_REGION: Final = re.compile(NAME_PATTERN)


def is_chosen(request: Request) -> bool:
    """Return whether this region's gateway chose the generation, or that of the region that forwarded the request.

    Gateways remove both headers from clients' requests. Only gateways of other regions reach the listener that keeps
    FORWARDED_HEADER.
    """
    return CHOSEN_HEADER in request.headers or _forwarding_gateway(request) is not None


def chosen_by(request: Request, region: str) -> str | None:
    """Return the region whose gateway chose the generation: `region`, or the one that forwarded the request.

    None if a client did.
    """
    return region if CHOSEN_HEADER in request.headers else _forwarding_gateway(request)


def _forwarding_gateway(request: Request) -> str | None:
    region, by_weight, rest = request.headers.get(FORWARDED_HEADER, "").partition(CHOSEN_BY_WEIGHT)
    return region if by_weight and not rest and _REGION.fullmatch(region) else None
