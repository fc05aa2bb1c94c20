"""Routes for models, with their snapshots, publishes, controls, history, owners and logs.

For the application and the page's routes. Begin with `models` and `publications`.
"""
