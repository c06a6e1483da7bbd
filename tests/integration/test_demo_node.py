"""A worker node that cannot work is refused at its start, and nothing of it stays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.demo import reachable_directory
from support.need import need_root
from support.node_processes import command_of
from support.pki import Pki

from airpanda.core.errors import ConfigurationError
from airpanda_demo.processes import descendants
from airpanda_demo.worker_node import WorkerNode

pytestmark = [pytest.mark.root, pytest.mark.integration]

ONLY_FOR_ROOT = f"""\
#!/bin/sh
[ "$(id -u)" = 0 ] && exec "{sys.executable}" "$@"
echo "not for you" >&2
exit 1
"""


def started() -> set[int]:
    """Processes of this one's, but for those of the tests' PostgreSQL, which come and go."""
    return {process.pid for process in descendants(os.getpid()) if b"postgres" not in command_of(process.pid)}


def test_an_interpreter_that_the_nodes_accounts_cannot_use(tmp_path: Path) -> None:
    need_root()
    before = started()
    pki = Pki(tmp_path / "pki")
    with reachable_directory() as above:
        python = above / "python"
        python.write_text(ONLY_FOR_ROOT)
        python.chmod(0o755)
        node = WorkerNode(tmp_path / "node", ca_dir=pki.ca_dir, mapfile={}, software=[Path(sys.prefix)], python=python)
        with pytest.raises(
            ConfigurationError, match=r"cannot be used by the node's accounts: not for you; see .*node.log"
        ):
            node.start()
    assert started() <= before
