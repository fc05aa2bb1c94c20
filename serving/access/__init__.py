"""Who may ask which model: the access list of a region, and the limits of those who ask.

For the router and its OpenAI side. Begin with `guard`, which decides for each request.
"""
