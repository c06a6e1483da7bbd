"""``python -m airpanda queues check|show|test``: what queue files say, and whether a queue works."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from airpanda.computing import queue_files
from airpanda.core.commands import run_command
from airpanda.core.errors import ConfigurationError
from airpanda.hooks.asking import send_once
from airpanda.hooks.calls import Call
from airpanda.hooks.probing import QueueTest
from airpanda.hooks.terminal import add_dispatcher, dispatcher_client

R = TypeVar("R")


def main(argv: Sequence[str]) -> int:
    """Exit codes as of :func:`run_command`."""
    return run_command(_parser(), argv)


def _check(arguments: argparse.Namespace) -> int:
    queues, wrong = queue_files.problems(_directory(arguments))
    for queue in queues.values():
        print(queue_files.summary(queue))
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    print(f"{len(queues)} queue files are right, {len(wrong)} things are wrong")
    return 1 if wrong else 0


def _show(arguments: argparse.Namespace) -> int:
    path = _directory(arguments) / f"{arguments.name}.toml"
    if "/" in arguments.name or not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.toml"))) or "none"
        raise ConfigurationError(f"there is no queue {arguments.name!r} in {path.parent}; known: {known}")
    print(queue_files.table(list(queue_files.effective(path))))
    return 0


def _test(arguments: argparse.Namespace) -> int:
    from airpanda.hooks.computing import element_of  # paramiko and Airflow are slow to import

    wrapper = _directory(arguments).parent / "pilot" / "wrapper.sh"
    with dispatcher_client(arguments) as client:

        def send(call: Call[R]) -> R:
            return send_once(call, client, "of the command line")

        test = QueueTest(send, element_of, wrapper, print, limit_s=arguments.timeout)
        verdict = test.run(arguments.name)
    if verdict.probe is not None:
        print(json.dumps(verdict.probe, indent=2, sort_keys=True))
    if verdict.log:
        print(f"---- the end of the pilot's log\n{verdict.log}\n----")
    print(verdict.text, file=sys.stdout if verdict.good else sys.stderr)
    return 0 if verdict.good else 1


def _directory(arguments: argparse.Namespace) -> Path:
    if arguments.include is not None:
        return Path(arguments.include, "queues")
    from airflow.configuration import conf

    include = conf.get("airpanda", "include_dir", fallback="")
    if not include:
        raise ConfigurationError("[airpanda] include_dir is not set: name the include folder by --include")
    return Path(include, "queues")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airpanda queues", description="PanDA queues, one file each.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("check", _check, "look for mistakes in all queue files; each is told with file, line and key"),
        ("show", _show, "show every value of one queue and where it comes from; never a secret"),
        ("test", _test, "send one pilot that shows its node, takes no job, and is removed again"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--include", type=Path, help="the folder that holds queues/ (default: [airpanda] include_dir of Airflow)"
        )
        command.set_defaults(run=run)
        if name != "check":
            command.add_argument("name", help="the queue")
        if name == "test":
            add_dispatcher(command, "a client token that may send pilots to this queue")
            command.add_argument(
                "--timeout", type=float, default=600.0, metavar="S", help="seconds to wait for the pilot (default 600)"
            )
    return parser
