"""Answers as bytes: the status line and headers, and whole answers."""

import http
from typing import Final

from serving.http.messages import Answer, Response, StreamedAnswer

_REASONS: Final = {status.value: status.phrase for status in http.HTTPStatus}


def format_head(response: Response, size: int, *, keep: bool) -> bytes:
    """Return the head of an answer with a body of so many bytes; unless `keep`, it ends the connection."""
    return _format(response, f"content-length: {size}\r\n", keep=keep)


def format_stream_head(answer: StreamedAnswer, *, chunked: bool, keep: bool) -> bytes:
    """Return the head of a streamed answer, in chunks or of the size that its headers state."""
    return _format(answer, "transfer-encoding: chunked\r\n" if chunked else "", keep=keep)


def format_whole(response: Response, *, keep: bool) -> bytes:
    """Return head and body of an answer."""
    return b"".join((format_head(response, len(response.body), keep=keep), response.body))


def _format(response: Answer, length: str, *, keep: bool) -> bytes:
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}\r\n{length}"]
    lines += [f"{key}: {value}\r\n" for key, value in response.headers.items()]
    lines.append("\r\n" if keep else "connection: close\r\n\r\n")
    return "".join(lines).encode("latin-1", "replace")
