"""Access control of predictions: the access list of a region, and the rate limits of callers.

For the router and its OpenAI side. Begin with `guard`, which decides for each request.
"""
