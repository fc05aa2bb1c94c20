"""Whether a gateway chose the generation of a request by weight, so that no client asked for just this one."""

from ipnext.names import CHOSEN_BY_WEIGHT, CHOSEN_HEADER, FORWARDED_HEADER
from serving.http.messages import Request


def is_chosen(request: Request) -> bool:
    """Return whether this region's gateway chose it, or another region's that sent it here.

    Gateways take CHOSEN_HEADER from what clients send, and FORWARDED_HEADER too where other regions come in by a listener of their own; where
    they do not, a client that calls itself another region's gateway is believed.
    """
    headers = request.headers
    return CHOSEN_HEADER in headers or headers.get(FORWARDED_HEADER, "").endswith(CHOSEN_BY_WEIGHT)
