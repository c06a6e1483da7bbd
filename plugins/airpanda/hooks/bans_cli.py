"""``python -m airpanda ban``: whose jobs are dispatched no more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pydantic import ValidationError

from airpanda.core.clock import to_wire
from airpanda.core.commands import run_command
from airpanda.core.errors import RequestError
from airpanda.hooks import calls
from airpanda.hooks.asking import send_once
from airpanda.hooks.terminal import add_dispatcher, dispatcher_client
from airpanda.messages import BanRequest, BanView


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    return run_command(_parser(), argv)


def _show(arguments: argparse.Namespace) -> int:
    for view in arguments.ask(arguments):
        print(f"{view.kind} {view.name}: {view.reason} (by {view.banned_by} at {to_wire(view.banned_at)})")
    return 0


def _add(arguments: argparse.Namespace) -> list[BanView]:
    with dispatcher_client(arguments) as client:
        return [send_once(calls.ban(_wanted(arguments)), client, "of the command line")]


def _lift(arguments: argparse.Namespace) -> list[BanView]:
    with dispatcher_client(arguments) as client:
        send_once(calls.lift_ban(_wanted(arguments)), client, "of the command line")
    return []


def _list(arguments: argparse.Namespace) -> list[BanView]:
    with dispatcher_client(arguments) as client:
        return send_once(calls.bans(), client, "of the command line")


def _wanted(arguments: argparse.Namespace) -> BanRequest:
    try:
        return BanRequest(dn=arguments.dn, fqan=arguments.fqan, reason=arguments.reason)
    except ValidationError as error:
        raise RequestError("; ".join(item["msg"] for item in error.errors())) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda ban", description="Whose jobs are dispatched no more.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, ask, text in (
        ("add", _add, "ban a DN, or everybody with a VOMS attribute"),
        ("lift", _lift, "lift a ban"),
        ("list", _list, "show all bans"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        add_dispatcher(command, "a client token for all owners")
        command.set_defaults(run=_show, ask=ask)
        if name != "list":
            who = command.add_mutually_exclusive_group(required=True)
            who.add_argument("--dn", help="a payload owner")
            who.add_argument("--fqan", help="a group bans its subgroups and roles, too")
            command.add_argument("--reason", required=name == "add", default="", help="stands where people look")
    return parser
