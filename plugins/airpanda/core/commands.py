"""Commands for people at a terminal: what their exit codes mean, and how what went wrong is told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from airpanda.core.errors import AirpandaError


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Do what the command line asks: its default ``run`` is called with the arguments, and returns an exit code.

    Returns:
        0 where all is well, 1 where something is wrong, which is told in a sentence on stderr.

    Raises:
        SystemExit: 2 for a wrong command line, 0 after ``--help``.
    """
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (AirpandaError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def names(text: str) -> list[str]:
    """The type of an argument of several names."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError("an empty name")
    return found
