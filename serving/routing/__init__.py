"""Which host answers: the table, the sync policy, connections, loads, retries.

For the router, its OpenAI side, and hosts that execute a graph. Begin with `table`, then `host_client`.
"""
