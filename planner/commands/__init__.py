"""The commands of `ipnext plan`, one module for each kind of document. `planner.command` puts them together."""
