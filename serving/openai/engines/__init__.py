"""The engines of a region, from a router's view.

Connections, loads, cached prefixes, answers, and the proof of their origin. For `serving.openai`; imports none of it.
Begin with `registry`.
"""
