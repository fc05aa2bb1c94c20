"""Compiles the program of a snapshot into a native library, an optimization that its manifest can request.

For the platform's optimization and the entry point of `ipnext compile`. Begin with `compile`.
"""
