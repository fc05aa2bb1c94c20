"""Compiles the program of a snapshot into a native library, as an optimisation that its manifest can ask for."""
