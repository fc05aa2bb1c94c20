"""Delta snapshots: the rows of a model's weights that changed against a named parent.

For training code and the entry point of `ipnext delta`. Begin with `export`; what hosts read of a delta is in `serving.weights`.
"""
