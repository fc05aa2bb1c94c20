"""The router: the V2 edge of a region's models, its management routes, and its end without a lost request.

Imported by nothing: agents start `python -m serving.router`. Begin with `router`; what clients of OpenAI's API ask is in `serving.openai`.
"""
