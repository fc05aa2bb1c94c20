"""The platform's modules, one package each: metadata, validation, optimization, planning, transition, deployment.

Activities act, workflows decide. Beside them: regions (drains and failover), state (desired and observed), runtime
(Temporal), and `preparation`, which runs the short stages of a change in one attempt. A worker registers the class of
each `activities` module.
"""
