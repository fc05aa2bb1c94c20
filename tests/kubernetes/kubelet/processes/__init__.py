"""Processes of containers: their namespaces, limits and ends."""
