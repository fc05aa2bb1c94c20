"""Tensors on the wire: the Open Inference Protocol V2 for clients, frames between router and hosts.

For hosts, router and engines. Begin with `v2` and `frames`. docs/protocol.md describes both formats.
"""
