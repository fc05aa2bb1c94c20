"""Detection of requests whose generation was chosen by a gateway's weights, not by the client's pin."""

from ipnext.names import CHOSEN_BY_WEIGHT, CHOSEN_HEADER, FORWARDED_HEADER
from serving.http.messages import Request


def is_chosen(request: Request) -> bool:
    """Return whether this region's gateway chose the generation, or that of the region that forwarded the request.

    Gateways remove both headers from clients' requests. Only gateways of other regions reach the listener that keeps
    FORWARDED_HEADER.
    """
    headers = request.headers
    return CHOSEN_HEADER in headers or headers.get(FORWARDED_HEADER, "").endswith(CHOSEN_BY_WEIGHT)
