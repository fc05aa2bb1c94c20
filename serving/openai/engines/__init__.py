"""The engines of a region as a router sees them: connections, loads, cached prefixes, answers, and the proof of whose answer it is.

For `serving.openai`; imports none of it. Begin with `registry`.
"""
