"""Desired routes: generations as routers serve them, shares of users' regions, and those after a failover.

For all packages of `activities` but `runtime`. Begin with `route_shares` and `served_generations`.
"""
