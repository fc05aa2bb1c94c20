"""A Kubernetes cluster of test doubles: an API server, its controllers, and nodes whose pods are local processes.

Tests import it; `python -m tests.kubernetes.kubelet` is a node of any API server.
"""
