"""Setting a platform up on any Temporal, checking it, and choosing which build of the workers is current.

Called by `ipnext platform ...`, and by worker and API at their start. Everything here talks to Temporal by the settings that the
SDK reads itself (temporal.toml, TEMPORAL_*).
"""
