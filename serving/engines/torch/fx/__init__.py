"""An exported graph as one plain function: lookups joined, nodes called directly. Every rewrite keeps the bits of the answers.

For `serving.engines.torch`; imports none of it. Begin with `direct_calls`. docs/decisions/0010 has what each rewrite saves.
"""
