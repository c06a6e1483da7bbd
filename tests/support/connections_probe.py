"""A program: what our hooks make of Airflow's Connections, as one line of JSON.

Arguments: a file with Airflow commands, one JSON list a line, which are executed first (``-``: none, and no database).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any


def main(commands: str) -> None:
    """Execute and report."""
    if commands != "-":
        _execute([json.loads(line) for line in Path(commands).read_text().splitlines()])
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"  # as in the api-server, which answers the workers
    from airpanda.hooks.address import Address
    from airpanda.hooks.computing import robot_credential, ssh_login
    from airpanda.hooks.myproxy import MyProxyHook
    from airpanda.hooks.panda import PandaHook

    def dispatcher() -> list[str]:
        found = Address.of("panda_default", PandaHook.get_connection("panda_default"))
        return [found.base_url, found.ca_place, found.token.reveal()]

    def myproxy() -> list[Any]:
        there = MyProxyHook().repository
        return [there.host, there.port, str(there.ca_dir), there.retriever_dn]

    def login() -> list[str]:
        found = ssh_login("slurm_login")
        return [found.user, str(found.key_file)]

    questions: dict[str, Callable[[], Any]] = {
        "panda_default": dispatcher,
        "myproxy_default": myproxy,
        "owner_alice": lambda: MyProxyHook().owner_proxy("alice", lifetime=timedelta(hours=1)).identity,
        "slurm_login": login,
        "arc_robot": lambda: robot_credential("arc_robot").identity,
    }
    print(json.dumps({name: _answer(question) for name, question in questions.items()}))


def _execute(commands: list[list[str]]) -> None:
    from airflow.cli.cli_parser import get_parser
    from airflow.utils.db import initdb

    initdb()
    for words in commands:
        arguments = get_parser().parse_args(words)
        arguments.func(arguments)


def _answer(question: Callable[[], Any]) -> Any:
    from airpanda.core.errors import ConfigurationError

    try:
        return question()
    except ConfigurationError as error:
        if "has no Connection" not in str(error):
            raise
        return "absent"


if __name__ == "__main__":
    main(sys.argv[1])
