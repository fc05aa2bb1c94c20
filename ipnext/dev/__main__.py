"""`python -m ipnext.dev`: the same as `ipnext dev`."""

import argparse
import sys
from pathlib import Path

from ipnext.dev.platform import run
from ipnext.errors import IPnextError
from ipnext.settings import dev_settings

SETTINGS = {"workers": "dev_workers", "database_url": "dev_database_url", "artifacts": "dev_artifacts_uri"}
"""Option -> its setting."""


def main() -> int:
    """Read the arguments and run. Bad input and conflicts are one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="ipnext dev", description="Start the whole platform on this machine.")
    parser.add_argument("--state", type=Path, required=True, help="directory that holds everything; created if missing")
    parser.add_argument("--config", type=Path, help="another temporal-dev.yaml")
    parser.add_argument("--fleet", type=Path, help="a manifest of kind Fleet; default: two regions")
    parser.add_argument("--free-ports", action="store_true", help="take free ports in place of taken ones")
    parser.add_argument("--workers", type=int, help="worker processes; default: IPNEXT_DEV_WORKERS, else two")
    parser.add_argument("--database-url", help="a PostgreSQL for the record; default: SQLite in the state")
    parser.add_argument(
        "--artifacts", help="a bucket for artifacts, s3://BUCKET/PREFIX; default: a directory in the state"
    )
    given = vars(parser.parse_args())
    named = {name: given.pop(option) for option, name in SETTINGS.items()}
    try:
        return run(dev_settings(**named), **given)
    except IPnextError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - an entry point
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
