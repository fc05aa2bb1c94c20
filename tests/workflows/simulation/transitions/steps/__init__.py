"""The activities of a transition over the simulated store and regions.

The real pure code decides. Each activity is a generator: a text is a step that no crash divides, anything else is a
wait.
"""
