"""Steps before the generator: a graph's first nodes, and the prompt built from their outputs.

For `serving.openai.routes`. Begin with `pre_generation`.
"""
