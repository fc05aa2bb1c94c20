"""The gate of a wave: whether a new generation answers well enough. Pure functions of counts.

`activities.transition` and tests import it. Begin with `verdict`, which judges what `window` counted by `evidence`.
"""
