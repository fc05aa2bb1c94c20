"""Counters in plain numbers, and sketches of answers, which Prometheus reads when it scrapes.

For the hosts and the router. Begin with `tallies`. Why not prometheus-client's own counters: docs/decisions/0010.
"""
