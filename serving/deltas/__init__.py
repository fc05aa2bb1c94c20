"""Delta snapshots: the changed rows of a model's weights relative to a named parent.

For training code and the entry point of `ipnext delta`. Begin with `export`; `serving.weights` has the reader for
hosts.
"""
