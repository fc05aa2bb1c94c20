"""The commands of `ipnext plan`, one module for each kind of document.

Imported by nothing but the entry point. Begin with `app`, which puts them together.
"""
