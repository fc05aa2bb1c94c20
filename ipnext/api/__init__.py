"""The HTTP API and the page: registry, lifecycle, plans, serving metadata. Started by `python -m ipnext.api`."""
