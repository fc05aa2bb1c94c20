"""A process of the platform: inherited variables, garbage collections, its end, and texts without its machine.

For the programs of every package. Begin with `inherited_environment` and `end`.
"""
