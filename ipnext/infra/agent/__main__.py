"""`python -m ipnext.infra.agent`."""

import sys

from ipnext.process.garbage_collection import collect_after_imports

with collect_after_imports():
    from ipnext.infra.agent.agent import main

if __name__ == "__main__":
    sys.exit(main())
