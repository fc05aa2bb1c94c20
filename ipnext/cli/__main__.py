"""`python -m ipnext.cli`: the same as `ipnext`."""

from ipnext.cli.app import main

main()
