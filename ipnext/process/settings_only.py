"""Command line of a process that variables of the environment configure: it has no argument but `--help`."""

import argparse
from collections.abc import Sequence


def read_no_arguments(program: str, description: str, arguments: Sequence[str] | None = None) -> None:
    """Print the help of `python -m PROGRAM` and exit if it is asked for; refuse each other argument, with status 2.

    `arguments` are by default those of this process.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog="Variables of the environment, IPNEXT_..., configure it.",
    )
    parser.parse_args(arguments)
