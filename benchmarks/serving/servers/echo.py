"""Our HTTP server with nothing behind it: every request gets the same bytes at once.

What is left is HTTP, loopback and client.
"""

import sys
from functools import partial

from serving.http.listeners import Listener, listen
from serving.http.messages import Request, Response
from serving.http.server import run, serve


def main(port: int, size: int) -> None:
    """Until SIGTERM."""
    answer = Response(200, b" " * size, {"content-type": "application/octet-stream"})

    def handle(_: Request) -> Response:
        return answer

    run(partial(serve, handle, [Listener(listen(port))]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
