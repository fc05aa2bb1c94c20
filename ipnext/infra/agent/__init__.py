"""The agent of a region, `python -m ipnext.infra.agent`: it reconciles the region's processes with the desired state.

`ipnext dev` starts it, and imports it for its forks. Begin with `agent` and `reconciler`.
"""
