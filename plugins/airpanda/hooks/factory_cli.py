"""``python -m airpanda factory``: what the pilot factory decides for queues, as sentences; one cycle, or a dry run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from airpanda.core.commands import run_command
from airpanda.core.errors import AirpandaError
from airpanda.hooks import calls
from airpanda.hooks.asking import send_once
from airpanda.hooks.calls import Call
from airpanda.hooks.terminal import add_dispatcher, dispatcher_client

R = TypeVar("R")


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`; also 1 where one of the queues could not be served."""
    return run_command(_parser(), argv)


def _run(arguments: argparse.Namespace) -> int:
    # Airflow and what needs it are slow to import.
    from airpanda.hooks.computing import element_of, pilots_proxy, wrapper_path
    from airpanda.hooks.factory import Factory

    with dispatcher_client(arguments) as client:

        def send(call: Call[R]) -> R:
            return send_once(call, client, "of the command line")

        wrapper = Path(arguments.include, "pilot", "wrapper.sh") if arguments.include else wrapper_path()
        factory = Factory(send, element_of, wrapper, "the command line", credential_of=pilots_proxy)
        queues = arguments.queues or [state.queue for state in send(calls.factories())]
        code = 0
        for queue in queues:
            try:
                said = factory.dry_run(queue) if arguments.dry_run else factory.cycle(queue)
            except AirpandaError as error:
                print(f"{queue}: {error}", file=sys.stderr)
                code = 1
                continue
            for sentence in said:
                print(f"{queue}: {sentence}")
    return code


def _parser() -> argparse.ArgumentParser:
    text = "Let the pilot factory look at queues once, and say every decision with its reason."
    parser = argparse.ArgumentParser(prog="airpanda factory", description=text)
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help="which ones (default: all of this client)")
    parser.add_argument("--dry-run", action="store_true", help="decide from what is on record, and do nothing")
    parser.add_argument(
        "--include", type=Path, help="the folder that holds pilot/wrapper.sh (default: [airpanda] include_dir)"
    )
    add_dispatcher(parser, "a client token that may send pilots to these queues")
    parser.set_defaults(run=_run)
    return parser
