"""Desired state of the infrastructure, and the state that regions report.

For activities, store, infrastructure and serving. Begin with `deployment` and `route_table`, the desired state, and
`region_state`, the observed one. `host_control` and `router_table` are what an agent exchanges with its processes.
"""
