"""Compiles the program of a snapshot into a native library, as an optimisation that its manifest can ask for.

For the platform's optimization and the entry point of `ipnext compile`. Begin with `compile`.
"""
