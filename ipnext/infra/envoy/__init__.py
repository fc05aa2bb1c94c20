"""Configuration of a region's Envoy, rendered from route tables: pure functions.

For `gateway`, which runs Envoy, and the agent. Begin with `config` and `bootstrap`.
"""
