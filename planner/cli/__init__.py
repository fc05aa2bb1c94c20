"""The commands of `ipnext plan`, one module for each kind of document.

Imported only by the entry point. Begin with `app`, which assembles them.
"""
