"""The drill of a machine without a launcher: any account's pilots and their contained payloads, policy OPTIONAL.

What takes the launcher's place is killed, too: bubblewrap and the supervisor above it. ``AIRPANDA_DRILL_JOBS`` makes
it longer, ``AIRPANDA_NODE_PYTHON`` names another Python for the node. As root the pilots run as ``nobody``.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from support.dispatcher import job_database, template_database
from support.drill import (
    KEPT_OF_ALL,
    KEPT_OF_PILOT,
    PILOTS_AT_ONCE,
    Cause,
    Drill,
    Prey,
    RestartableMyProxy,
    argv_of,
    having,
)
from support.launcher import Site, wait_for
from support.need import NODE_PYTHON, need_nodes_python, need_program
from support.node_processes import parent_of
from support.pilot_chain import PLUGINS, Bare, Place, running_chain
from support.pki import Pki
from support.postgres import Database, postgres

from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

JOBS = int(os.environ.get("AIRPANDA_DRILL_JOBS", "80"))
ACCOUNT = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
STRIKES = ("payload", "bubblewrap", "pilot", "supervisor", "gateway", "pilot", "payload", "myproxy")
EACH = PILOTS_AT_ONCE
CAUSES = {
    ("jobDispatcher", 100): [Cause("lost heartbeat", "system", {"pilot": 1, "gateway": EACH})],
    ("pilot", 1226): [
        Cause(
            "the launcher was lost after the payload had started: the payload's supervisor was killed",
            "site",
            {"bubblewrap": 1, "supervisor": 1},
        )
    ],
    ("pilot", 1163): [Cause("the MyProxy server did not serve; .*cannot be reached", "system", {"myproxy": 2 * EACH})],
    ("exe", 137): [Cause("the payload failed: killed by signal 9; the owner", "user", {"payload": 1})],
}


@pytest.fixture(name="root")
def _root() -> Iterator[Path]:
    """A directory that the pilots' account may pass through."""
    root = Path(tempfile.mkdtemp(prefix="airpanda drill ", dir="/var/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def place(root: Path) -> Place:
    need_nodes_python()
    need_program("bwrap", "bubblewrap")
    pki = Pki(root / "pki")
    pki.root.chmod(0o755)
    # The checkout itself may lie below a directory that is closed to other accounts.
    code, private = root / "plugins", root / "node"
    shutil.copytree(PLUGINS / "airpanda", code / "airpanda", ignore=shutil.ignore_patterns("__pycache__"))
    private.mkdir(mode=0o700)
    eec = ProxyCredential.from_files(*pki.user("pilot"))
    create_proxy(eec, lifetime=timedelta(hours=5), now=datetime.now(UTC)).write(private / "pilot.proxy")
    if os.geteuid() == 0:
        for path in (private, *private.iterdir()):
            shutil.chown(path, ACCOUNT)
    ce = f'kind = "local"\ndirectory = "{root / "pilots"}"\naccount = "{ACCOUNT}"\n'
    return Place(ce, bare=Bare(NODE_PYTHON, code, pki.ca_dir, private / "pilot.proxy"))


def prey_of(root: Path, word: str) -> dict[str, Prey]:
    def of_job(program: str) -> list[int]:
        return [pid for pid, argv in having(word).items() if program in argv.split()[0]]

    def supervisors() -> list[int]:
        """Not what they fork before it becomes the payload."""
        found = [pid for pid, argv in having(word).items() if "supervisor.py" in argv and "python" in argv.split()[0]]
        return [pid for pid in found if parent_of(pid) not in found]

    def pilots() -> list[int]:
        """Not a child of one that is about to exec."""
        found = [pid for pid, argv in having(str(root)).items() if "from airpanda.pilot.__main__" in argv]
        return [pid for pid in found if parent_of(pid) not in found]

    return {
        "pilot": pilots,
        # The first process of a payload; what it is in has the same words in its arguments.
        "payload": lambda: of_job("sh"),
        "supervisor": supervisors,
        "bubblewrap": lambda: [pid for pid in of_job("bwrap") if "supervisor.py" in argv_of(parent_of(pid))],
    }


@pytest.fixture
def drill(root: Path, place: Place, job_database: Database, tmp_path: Path) -> Iterator[Drill]:
    people = cast("Site", SimpleNamespace(pki=Pki(root / "pki")))  # a bare place's chain asks for nothing else
    word = f"drill-job-{secrets.token_hex(6)}"
    directory = root / "myproxy"
    directory.mkdir(mode=0o700)
    myproxy = RestartableMyProxy(people.pki, directory)
    try:
        with running_chain(people, myproxy.process, job_database, tmp_path, place, lease_s=4) as chain:
            yield Drill(chain, myproxy, prey_of(root, word), word)
    finally:
        myproxy.kill()


def mounts() -> list[str]:
    """Of this machine; what other tests mount meanwhile is theirs."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if "airpanda drill" in line]


def test_every_job_ends_once_while_everything_is_killed(drill: Drill, root: Path) -> None:
    drill.run(JOBS, STRIKES)
    drill.check_ends(JOBS)
    drill.check_errors(CAUSES)
    ((switched,),) = drill.chain.sql("SELECT bool_or(identity_switched) FROM panda_attempt")
    assert switched is False
    wait_for(lambda: not {**having(drill.word), **having(str(root / "pilots"))})
    kept = {root / "pilots" / handle for handle in drill.handles}
    kept |= {root / "pilots" / KEPT_OF_ALL, *(place / name for place in kept for name in KEPT_OF_PILOT)}
    assert set((root / "pilots").rglob("*")) - kept == set(), drill.logs()[-20000:]
    assert [path.name for path in (root / "node").iterdir()] == ["pilot.proxy"]
    assert mounts() == []
