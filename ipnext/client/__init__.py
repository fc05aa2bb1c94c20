"""The Python client of the API: `ipnext.client.Client`, for the command line, notebooks and services.

Importable by all; only this name is for callers outside IPnext. Needs the base dependencies. Begin with `client`;
`calls` has its methods by noun, `connection` sends requests and reads answers, `credential` and `login` have the
credential, `upload` checks a snapshot before a byte of it is sent.
"""

from ipnext.client.client import Client

__all__ = ["Client"]
