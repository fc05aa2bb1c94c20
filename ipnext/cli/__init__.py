"""`ipnext ...`: the command line, thin over `ipnext.client`. Needs the base dependencies only."""

from ipnext.process.garbage_collection import collect_after_imports

with collect_after_imports():
    from ipnext.cli.app import app, main

__all__ = ["app", "main"]
