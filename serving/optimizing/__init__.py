"""Steps that derive a snapshot from a snapshot, and their accuracy reports. Nothing here needs a model's own code.

For the platform's optimization and the entry point of `ipnext optimize`. Begin with `derive`; `quantize` is the
built-in kind, `judge` measures what a derived snapshot differs in.
"""
