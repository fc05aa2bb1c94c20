"""`python -m ipnext.infra.agent`."""

import sys

from ipnext.infra.agent.agent import main

if __name__ == "__main__":
    sys.exit(main())
