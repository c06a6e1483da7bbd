"""``python -m airpanda``: the commands for people at a terminal; each room brings its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

_USAGE = """\
usage: python -m airpanda COMMAND ...

  glexec install|check|uninstall   the launcher that runs payloads as their owners (site administrators)
  pilot bundle|errors              the program on the worker nodes in one file, and what its errors mean
  token key|client|revoke|revoked  the dispatcher's signing key, tokens for Airflow Connections, and their end
  proxy stage|info|consent|revoke|destroy   what payload owners do with their staged proxies
  ban add|lift|list                whose jobs are dispatched no more
  share list|set|end               who gets how much of the pilots, who comes first, who may have no more
  job why                          why a job waits, in one sentence
  retention [--dry-run]            put away what has ended (dispatchers do it by themselves, more slowly)
  queues check|show|test           are the queue files right, and does a queue work
  factory [--dry-run] QUEUE...     what the pilot factory decides, and why

Each command explains itself with --help.
"""


# Imported when asked for: what one command needs may be slow, or not there.
_ROOMS = {
    "glexec": "glexec.cli",
    "pilot": "pilot.cli",
    "token": "dispatcher.cli",
    "proxy": "myproxy.cli",
    "ban": "hooks.bans_cli",
    "share": "hooks.shares_cli",
    "job": "hooks.job_cli",
    "retention": "dispatcher.retention_cli",
    "queues": "hooks.queues_cli",
    "factory": "hooks.factory_cli",
}


def main(argv: Sequence[str]) -> int:
    """Hand over to the command's room; 2 for a command that does not exist."""
    if argv and argv[0] in _ROOMS:
        return int(import_module(f"airpanda.{_ROOMS[argv[0]]}").main(list(argv[1:])))
    asked = argv[:1] in (["-h"], ["--help"])
    print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
