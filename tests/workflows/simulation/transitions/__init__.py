"""The plan of a transition, the order of its steps, and its run."""
