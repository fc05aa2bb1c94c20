"""An exported graph as one plain function: fused lookups, direct calls of nodes. Every rewrite is bit-identical.

For `serving.engines.torch`; imports none of it. Begin with `direct_calls`. docs/decisions/0010 has the gain of each
rewrite.
"""
