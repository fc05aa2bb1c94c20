"""Checks of a snapshot that run its program: figures against the serving snapshot, and golden requests.

For the validation of the platform, which starts `process` confined. Begin with `regression` and `golden`; the figures
are those of `serving.optimizing`.
"""
