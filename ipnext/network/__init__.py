"""Listeners and addresses: limits of connections, names that a listener answers, addresses of this machine only.

For all that listens: API, agents, hosts, routers and the proxy of Temporal's UI. Imports errors only. Begin with
`listener` and `bounded_server`.
"""
