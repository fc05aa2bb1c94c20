"""Setup of a platform on any Temporal, its checks, and the choice of the workers' current build.

Called by `ipnext platform ...`, and by worker and API at their start. All connections to Temporal use the settings that
the SDK reads itself (temporal.toml, TEMPORAL_*).
"""
