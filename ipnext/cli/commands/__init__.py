"""Commands for models, regions and the platform, one module for each family.

For `ipnext.cli.app`. Begin with `changes` and `queries`.
"""
