"""Delta snapshots: the rows of a model's weights that changed against a named parent."""
