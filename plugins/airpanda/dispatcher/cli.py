"""``python -m airpanda token key|client|revoke|revoked``: the dispatcher's signing key, and tokens of its callers."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.commands import names, run_command
from airpanda.core.errors import RequestError
from airpanda.core.secret import Secret
from airpanda.db.pool import Database
from airpanda.dispatcher.revocations import LONGEST_TOKEN, MAX_AGE_S, Kind, Revocation, Revocations
from airpanda.dispatcher.tokens import Issuer, create_key
from airpanda.dispatcher.verbs import MEANINGS, Verb

T = TypeVar("T")


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    return run_command(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda token", description="Tokens of the dispatcher.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    key = commands.add_parser("key", help="write a fresh signing key, mode 0600; an existing file is never replaced")
    key.add_argument("file", type=Path)
    key.set_defaults(run=_key)
    client = commands.add_parser("client", help="write a client token, the password of a Connection, to a 0600 file")
    client.add_argument("name", help="who uses it; stands in the audit log")
    client.add_argument("--signing-key", type=Path, required=True, help="[airpanda] signing_key")
    client.add_argument("--owners", type=names, required=True, help="payload owners, separated by commas; * for all")
    client.add_argument("--queues", type=names, required=True, help="PanDA queues, separated by commas; * for all")
    more = client.add_mutually_exclusive_group()
    more.add_argument("--pilots", action="store_true", help="it may send pilots to these queues, too")
    more.add_argument("--read-only", action="store_true", help="it may look, and change nothing (for Prometheus)")
    verbs = "; ".join(f"{verb}: {meaning}" for verb, meaning in MEANINGS.items())
    more.add_argument(
        "--verbs",
        type=_verbs,
        help=f"what it may do, separated by commas, and nothing else ({verbs}); default: all of them but pilots",
    )
    client.add_argument("--days", type=_days, default=timedelta(days=30), help="how long it lasts (default 30)")
    client.add_argument("--output", type=Path, required=True, help="file to make; it must not exist")
    client.set_defaults(run=_client)
    revoke = commands.add_parser("revoke", help=f"refuse tokens from now on, everywhere within {MAX_AGE_S:.0f} s")
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument("--token-file", type=Path, help="the one token in this file")
    which.add_argument("--token-id", help="the one token with this identifier (jti)")
    which.add_argument("--client", help="every token of this client issued until now")
    which.add_argument("--pilot", type=int, help="the token of the pilot with this PilotID")
    revoke.add_argument("--reason", default="", help="for the list")
    revoke.set_defaults(run=_revoke)
    revoked = commands.add_parser("revoked", help="list what is revoked")
    revoked.set_defaults(run=_revoked)
    return parser


def _key(arguments: argparse.Namespace) -> int:
    create_key(arguments.file)
    print(f"{arguments.file} holds a fresh signing key; name it in [airpanda] signing_key")
    return 0


def _client(arguments: argparse.Namespace) -> int:
    now = utcnow()
    issuer = Issuer(arguments.signing_key)
    token = issuer.client_token(
        arguments.name,
        arguments.owners,
        arguments.queues,
        arguments.days,
        now,
        pilots=arguments.pilots,
        read_only=arguments.read_only,
        verbs=arguments.verbs,
    )
    descriptor = os.open(arguments.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token.reveal())
    rights = ", and to send pilots" if arguments.pilots else ", to look only" if arguments.read_only else ""
    if arguments.verbs is not None:
        rights = f", for the verbs {', '.join(sorted(arguments.verbs))}"
    print(
        f"{arguments.output} holds a token of {arguments.name!r} for owners {','.join(arguments.owners)} and queues"
        f" {','.join(arguments.queues)}{rights}, valid until {to_wire(now + arguments.days)}; remove it once it is in"
        " place"
    )
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    now = utcnow()
    kind, name, until = _what(arguments, now)

    async def run(revocations: Revocations) -> None:
        by = f"cli:{getpass.getuser()}"
        await revocations.revoke(kind, name, reason=arguments.reason, by=by, expires_at=until)

    _with_revocations(run)
    print(f"{kind} {name}: refused everywhere within {MAX_AGE_S:.0f} s")
    return 0


def _what(arguments: argparse.Namespace, now: datetime) -> tuple[Kind, str, datetime]:
    if arguments.client is not None:
        return "client", arguments.client, now + LONGEST_TOKEN
    if arguments.pilot is not None:
        return "pilot", str(arguments.pilot), now + LONGEST_TOKEN
    if arguments.token_id is not None:
        return "token", arguments.token_id, now + LONGEST_TOKEN
    from airpanda.dispatcher.configured import read_settings

    token = Secret(arguments.token_file.read_text(encoding="ascii").strip())
    identity = Issuer(read_settings().signing_key).whose(token, now)
    if identity is None:
        raise RequestError(f"{arguments.token_file} holds no valid token of this dispatcher: nothing to revoke")
    return "token", identity.token_id, datetime.fromtimestamp(identity.expires_at, UTC)


def _revoked(_arguments: argparse.Namespace) -> int:
    async def run(revocations: Revocations) -> list[Revocation]:
        return await revocations.in_force()

    for each in _with_revocations(run):
        print(f"{each.kind} {each.name} by {each.revoked_by} at {to_wire(each.revoked_at)} {each.reason}".rstrip())
    return 0


def _with_revocations(run: Callable[[Revocations], Coroutine[None, None, T]]) -> T:
    # Airflow takes a second to import: not for --help and the other commands.
    from airpanda.dispatcher.configured import read_dsn

    async def whole() -> T:
        database = Database(read_dsn())
        await database.open()
        try:
            return await run(Revocations(database))
        finally:
            await database.close()

    return asyncio.run(whole())


def _verbs(text: str) -> frozenset[Verb]:
    for name in (found := names(text)):
        if name not in set(Verb):
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(Verb)}")
    return frozenset(Verb(name) for name in found)


def _days(text: str) -> timedelta:
    days = float(text)
    if not 0 < days <= 366:
        raise argparse.ArgumentTypeError("more than 0 and at most 366 days")
    return timedelta(days=days)
