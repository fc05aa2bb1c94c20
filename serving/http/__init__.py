"""HTTP/1.1 for host and router, on httptools: one handler, bounded bodies and headers, no slow clients.

No TLS, no ASGI, no HTTP/2. For all of `serving` that listens or answers; imports none of it. Begin with `server` and
`connection`. Why not uvicorn: docs/decisions/0009.
"""
