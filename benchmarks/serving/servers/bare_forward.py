"""The eager forward in a process that is asked by one byte and answers by one: what the machine takes for any server.

Nothing is read, checked or written. What it costs beyond the forward in the asking process is the kernel's way there
and back, and that the pass begins with the caches and predictors as another process and the kernel left them.
"""

import socket
import sys
from itertools import count

import torch

from benchmarks.serving.http_wire import LOOPBACK
from benchmarks.serving.reference import REQUESTS, Reference


def main(port: int, rows: int, batch: int) -> None:
    """One connection after the other, each until its end."""
    reference = Reference(rows)
    requests = reference.requests(batch)
    listener = socket.create_server((LOOPBACK, port))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in count():
            if not connection.recv(1):
                break
            with torch.inference_mode():
                reference.module(**requests[number % REQUESTS])
            connection.sendall(b".")
        connection.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
