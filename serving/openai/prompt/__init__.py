"""What runs before a generation: a graph's first nodes, and the prompt that is made of what they give.

For `serving.openai.routes`. Begin with `pre_generation`.
"""
