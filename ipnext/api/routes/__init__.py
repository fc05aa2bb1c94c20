"""Routes of the API, by their objects: access, models, regions, and the page.

For the application. Begin with `models`.
"""
