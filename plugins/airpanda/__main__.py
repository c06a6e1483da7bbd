"""``python -m airpanda``: the commands for people at a terminal; each room brings its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_USAGE = """\
usage: python -m airpanda COMMAND ...

  glexec install|check|uninstall   the launcher that runs payloads as their owners (site administrators)
  pilot bundle                     the program on the worker nodes in one file (whoever sends pilots)
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


def main(argv: Sequence[str]) -> int:
    """Hand over to the command's room; 2 for a command that does not exist."""
    if argv[:1] == ["glexec"]:
        from airpanda.glexec.cli import main as glexec_main

        return glexec_main(list(argv[1:]))
    if argv[:1] == ["pilot"]:
        from airpanda.pilot.cli import main as pilot_main

        return pilot_main(list(argv[1:]))
    if argv[:1] == ["token"]:
        from airpanda.dispatcher.cli import main as token_main

        return token_main(list(argv[1:]))
    if argv[:1] == ["proxy"]:
        from airpanda.myproxy.cli import main as proxy_main

        return proxy_main(list(argv[1:]))
    if argv[:1] == ["ban"]:
        from airpanda.hooks.cli import main as ban_main

        return ban_main(list(argv[1:]))
    if argv[:1] == ["share"]:
        from airpanda.hooks.shares_cli import main as share_main

        return share_main(list(argv[1:]))
    if argv[:1] == ["queues"]:
        from airpanda.hooks.queues_cli import main as queues_main

        return queues_main(list(argv[1:]))
    if argv[:1] == ["job"]:
        from airpanda.hooks.cli import job_main

        return job_main(list(argv[1:]))
    if argv[:1] == ["retention"]:
        from airpanda.dispatcher.retention_cli import main as retention_main

        return retention_main(list(argv[1:]))
    if argv[:1] == ["factory"]:
        from airpanda.hooks.factory_cli import main as factory_main

        return factory_main(list(argv[1:]))
    asked = argv[:1] in (["-h"], ["--help"])
    print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
