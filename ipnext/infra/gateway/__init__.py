"""The Envoy process of a region: kept running, configured by files, observed through its admin endpoint.

For the agent. Begin with `process`.
"""
