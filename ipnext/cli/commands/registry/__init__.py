"""Commands for snapshots, where they come from, what is measured of them, and what is denied.

For `ipnext.cli.app` and `ipnext.cli.commands.queries`. Begin with `snapshots` and `sources`.
"""
