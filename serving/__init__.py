"""The data plane of a region, and what makes its snapshots. Knows neither Temporal nor the store.

For activities, the demo and training code. Begin with `router` and `host`, the processes; docs/decisions/0059 has the packages.
"""
