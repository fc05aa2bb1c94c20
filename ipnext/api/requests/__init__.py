"""HTTP below the routes: limits of bodies, strict JSON, shares of threads and slots, the stream of events.

For the application and its routes. Begin with `guarded_route`.
"""
