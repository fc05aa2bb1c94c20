"""Metrics of the control plane for Prometheus, read from the store and the regions at each request.

For the application. Begin with `endpoint`.
"""
