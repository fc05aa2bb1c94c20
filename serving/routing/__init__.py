"""Choice of the host for each call: the route table, the sync policy, connections, load balancing, retries.

For the router, its OpenAI side, and hosts that execute a graph. Begin with `table`, then `host_client`.
"""
