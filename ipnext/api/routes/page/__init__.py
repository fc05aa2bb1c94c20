"""Routes of the page and of probes: the page, its one answer, the readable schema, health.

For the application; above the other routes. Begin with `overview`.
"""
