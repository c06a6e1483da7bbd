"""``python -m airpanda share``: who gets how much of the pilots, who comes first, and who may have no more."""

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
from airpanda.messages import ShareKey, ShareNode, ShareSet, SharesView, ShareView

_KINDS = ("vo", "working_group", "owner")


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    return run_command(_parser(), argv)


def _show(arguments: argparse.Namespace) -> int:
    try:
        for line in arguments.ask(arguments):
            print(line)
    except ValidationError as error:
        said = (": ".join((*map(str, item["loc"]), item["msg"])) for item in error.errors())
        raise RequestError("; ".join(said)) from None
    return 0


def _list(arguments: argparse.Namespace) -> list[str]:
    with dispatcher_client(arguments) as client:
        return lines(send_once(calls.shares(), client, "of the command line"))


def _set(arguments: argparse.Namespace) -> list[str]:
    wanted = ShareSet(
        kind=arguments.kind,
        name=arguments.name,
        weight=arguments.weight,
        max_jobs=arguments.max_jobs,
        max_cores=arguments.max_cores,
        priority_offset=arguments.priority_offset,
    )
    with dispatcher_client(arguments) as client:
        return [told(send_once(calls.set_share(wanted), client, "of the command line"))]


def _end(arguments: argparse.Namespace) -> list[str]:
    wanted = ShareKey(kind=arguments.kind, name=arguments.name)
    with dispatcher_client(arguments) as client:
        return [f"no more: {told(send_once(calls.end_share(wanted), client, 'of the command line'))}"]


def lines(shares: SharesView) -> list[str]:
    """What is set, then the tree: share that each should have of its parent's cores, and has."""
    return [*map(told, shares.told), *map(_shown, shares.nodes)]


def told(share: ShareView) -> str:
    """One share as a line."""
    said = [f"weight {share.weight:g}"]
    if share.priority_offset:
        said.append(f"priority {share.priority_offset:+d}")
    said += [
        f"at most {most} {what}"
        for most, what in ((share.max_jobs, "jobs"), (share.max_cores, "cores"))
        if most is not None
    ]
    return f"{share.kind} {share.name or '(none)'}: {', '.join(said)} (by {share.set_by} at {to_wire(share.set_at)})"


def _shown(node: ShareNode) -> str:
    names = [name for name in (node.vo, node.working_group, node.owner) if name is not None]
    indent = "  " * (len(names) - 1)
    return (
        f"{indent}{names[-1] or '(none)'}: {node.actual:.1%} of {node.target:.1%}, {node.jobs} jobs with"
        f" {node.cores} cores, {node.waiting} waiting"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="airpanda share", description="Who gets how much of the pilots, who comes first, who may have no more."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, ask, text in (
        ("list", _list, "show what is set, and what each organisation, working group and owner should get and gets"),
        ("set", _set, "set a share in whole: what is left out has its default again"),
        ("end", _end, "take back what was set"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        add_dispatcher(command, "a client token for all owners and, to set, all queues")
        command.set_defaults(run=_show, ask=ask)
        if name == "list":
            continue
        command.add_argument("kind", choices=_KINDS)
        command.add_argument("name", help="* for each that is not named, '' for jobs without a working group")
        if name == "set":
            command.add_argument("--weight", type=float, default=1.0, help="among its siblings (default 1)")
            command.add_argument("--max-jobs", type=int, help="with pilots at once (default: any number)")
            command.add_argument("--max-cores", type=int, help="with pilots at once (default: any number)")
            command.add_argument(
                "--priority-offset", type=int, default=0, help="of an owner: added to its jobs' priority"
            )
    return parser
