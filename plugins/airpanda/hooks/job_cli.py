"""``python -m airpanda job why``: why a job waits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from airpanda.core.commands import run_command
from airpanda.hooks import calls
from airpanda.hooks.asking import send_once
from airpanda.hooks.terminal import add_dispatcher, dispatcher_client


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    parser = argparse.ArgumentParser(prog="airpanda job", description="Questions about one job.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "why a job waits, in one sentence"
    command = commands.add_parser("why", help=text, description=text)
    command.add_argument("panda_id", type=int, help="its PandaID")
    add_dispatcher(command, "a client token for the job's owner")
    command.set_defaults(run=_why)
    return run_command(parser, argv)


def _why(arguments: argparse.Namespace) -> int:
    with dispatcher_client(arguments) as client:
        view = send_once(calls.why(arguments.panda_id), client, "of the command line")
    print(f"job {view.panda_id} ({view.status}, {view.queue}): {view.why}")
    return 0
