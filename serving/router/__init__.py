"""The router: the V2 edge of a region's models, its management routes, and its graceful shutdown.

Imported by nothing: agents start `python -m serving.router`. Begin with `router`; OpenAI's API is in `serving.openai`.
"""
