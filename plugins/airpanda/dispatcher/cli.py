"""``python -m airpanda token key|client``: the dispatcher's signing key, and tokens for Airflow Connections."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import AirpandaError
from airpanda.dispatcher.tokens import Issuer, create_key


def main(argv: Sequence[str]) -> int:
    """Exit code 0 where all is well, 1 where something is wrong, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (AirpandaError, OSError) as error:
        print(f"airpanda token: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda token", description="Tokens of the dispatcher.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    key = commands.add_parser("key", help="write a fresh signing key, mode 0600; an existing file is never replaced")
    key.add_argument("file", type=Path)
    key.set_defaults(run=_key)
    client = commands.add_parser("client", help="write a client token, the password of a Connection, to a 0600 file")
    client.add_argument("name", help="who uses it; stands in the audit log")
    client.add_argument("--signing-key", type=Path, required=True, help="[airpanda] signing_key")
    client.add_argument("--owners", type=_names, required=True, help="payload owners, separated by commas; * for all")
    client.add_argument("--queues", type=_names, required=True, help="PanDA queues, separated by commas; * for all")
    client.add_argument("--pilots", action="store_true", help="it may send pilots to these queues, too")
    client.add_argument("--days", type=_days, default=timedelta(days=30), help="how long it lasts (default 30)")
    client.add_argument("--output", type=Path, required=True, help="file to make; it must not exist")
    client.set_defaults(run=_client)
    return parser


def _key(arguments: argparse.Namespace) -> int:
    create_key(arguments.file)
    print(f"{arguments.file} holds a fresh signing key; name it in [airpanda] signing_key")
    return 0


def _client(arguments: argparse.Namespace) -> int:
    now = utcnow()
    issuer = Issuer(arguments.signing_key)
    token = issuer.client_token(
        arguments.name, arguments.owners, arguments.queues, arguments.days, now, pilots=arguments.pilots
    )
    descriptor = os.open(arguments.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token.reveal())
    pilots = ", and to send pilots" if arguments.pilots else ""
    print(
        f"{arguments.output} holds a token of {arguments.name!r} for owners {','.join(arguments.owners)} and queues"
        f" {','.join(arguments.queues)}{pilots}, valid until {to_wire(now + arguments.days)}; remove it once it is in"
        " place"
    )
    return 0


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError("an empty name")
    return names


def _days(text: str) -> timedelta:
    days = float(text)
    if not 0 < days <= 366:
        raise argparse.ArgumentTypeError("more than 0 and at most 366 days")
    return timedelta(days=days)
