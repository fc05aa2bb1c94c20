"""The data plane of a region, and the tools that make its snapshots. Independent of Temporal and the store.

For activities, the demo and training code. Begin with `router` and `host`, the processes; docs/decisions/0059 has the
packages.
"""
