"""`ipnext ...`: the command line, thin over `ipnext.client`. Needs the base dependencies only."""

from ipnext.cli.app import app, main

__all__ = ["app", "main"]
