"""Routes for the fleet: regions, drains, freezes, plans and replans.

For the application and the page's routes. Begin with `fleet`.
"""
