"""Hosts of a region as pods of a Kubernetes cluster: `HostRuntime` on an API server.

For the agent, which imports it only if its settings ask for it: it needs the extra `kubernetes`. Begin with `runtime`.
"""
