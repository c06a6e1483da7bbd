"""``python -m airpanda pilot bundle``: what the people who send pilots type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from airpanda.core.errors import ConfigurationError
from airpanda.pilot.bundle import write_bundle
from airpanda.pilot.errors import table


def main(arguments: Sequence[str]) -> int:
    """The exit status: 2 for a wrong command or something that cannot be read or written."""
    options = _parser().parse_args(arguments)
    if options.command == "errors":
        print(table())
        return 0
    try:
        wheels = sorted(options.with_cryptography.glob("*.whl")) if options.with_cryptography else []
        if options.with_cryptography and not wheels:
            raise ConfigurationError(f"{options.with_cryptography} holds no wheels; download them there with pip")
        bundle = write_bundle(options.output, wheels=wheels)
    except ConfigurationError as error:
        print(f"airpanda pilot: {error}", file=sys.stderr)
        return 2
    print(f"{bundle.path}: {bundle.files} files, {bundle.size} bytes, sha256 {bundle.sha256}")
    print(f"Copy it with {bundle.path.name}.sha256 to the nodes, and name it as [pilot] code in the queue file.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda pilot", description="The program on the worker nodes.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("errors", help="what the pilots' error and exit codes mean, and who must act")
    bundle = commands.add_parser("bundle", help="the pilot and all it needs in one checksummed file")
    bundle.add_argument("--output", type=Path, required=True, metavar="FILE")
    bundle.add_argument(
        "--with-cryptography",
        type=Path,
        metavar="DIR",
        help="take along the wheels in DIR (cryptography, cffi for each Python), for nodes without the package",
    )
    return parser
