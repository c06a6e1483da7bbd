"""The drill: 200 short jobs while pilots, launchers, payloads, gateway and MyProxy are killed in turn.

Every job must end final exactly once, nothing may stay on the node, and each error must name what was really killed.
``AIRPANDA_DRILL_JOBS`` makes it shorter or longer. ``test_pilot_drill_contained`` is the same without a launcher.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    uid_of,
)
from support.launcher import ALICE_UID, BOB_UID, OTHER_UID, PILOT_UID, Site, make_site, wait_for
from support.node_processes import descends, parent_of, processes_of
from support.pilot_chain import PILOTS, running_chain
from support.postgres import Database, postgres

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(1500)]

JOBS = int(os.environ.get("AIRPANDA_DRILL_JOBS", "200"))
DAEMON = "airpanda-launcherd"
STRIKES = (
    "payload", "client", "pilot", "launcher", "daemon", "gateway", "pilot", "payload", "launcher", "myproxy",
)  # fmt: skip
EACH = PILOTS_AT_ONCE
LOST = "the launcher was lost after the payload had started: "
# What may stand in an error: what was killed, told by who noticed, and how often for each kill. A daemon takes all
# payloads with it, and until it is there again each pilot may fail once for each owner.
CAUSES = {
    ("jobDispatcher", 100): [Cause("lost heartbeat", "system", {"pilot": 1, "gateway": EACH})],
    ("pilot", 1226): [
        Cause(f"{LOST}the caller's program was killed", "site", {"client": 1}),
        Cause(f"{LOST}the launcher's service has ended", "site", {"daemon": EACH}),
        Cause(f"{LOST}(the launcher|the first process .* namespace) was killed", "site", {"launcher": 1}),
        Cause("the identity switch failed; .*launcher", "site", {"launcher": 1, "client": 1, "daemon": 2 * EACH}),
        Cause("the identity switch failed after the payload had started", "site", {"launcher": 1, "daemon": EACH}),
    ],
    ("pilot", 1163): [Cause("the MyProxy server did not serve; .*cannot be reached", "system", {"myproxy": 2 * EACH})],
    ("exe", 137): [Cause("the payload failed: killed by signal 9; the owner", "user", {"payload": 1})],
}


@pytest.fixture(scope="module", name="site")
def _site() -> Iterator[Site]:
    for site in make_site(respawn=True):
        site.node.set_mapfile({**site.mapfile, site.pki.dn("pilot"): "other"})
        yield site


def prey_of(site: Site, word: str) -> dict[str, Prey]:
    def of_job(*uids: int) -> list[int]:
        return [pid for pid in having(word) if uid_of(pid) in uids]

    def launchers() -> dict[int, bool]:
        """And whether each is the one above all the others, which the node starts again."""
        here = [pid for pid in having(DAEMON) if descends(pid, site.node.init_pid)]
        return {pid: DAEMON not in argv_of(parent_of(pid)) for pid in here}

    def pilots() -> list[int]:
        """Not a child of one that is about to exec."""
        found = [pid for pid in having("airpanda.pilot") if uid_of(pid) == PILOT_UID]
        return [pid for pid in found if parent_of(pid) not in found]

    return {
        "pilot": pilots,
        "payload": lambda: of_job(ALICE_UID, BOB_UID),
        # The root processes that serve one payload.
        "launcher": lambda: [pid for pid, is_daemon in launchers().items() if not is_daemon],
        "daemon": lambda: [pid for pid, is_daemon in launchers().items() if is_daemon],
        # The pilot's end of the switch, while it holds a payload.
        "client": lambda: of_job(PILOT_UID),
    }


@pytest.fixture
def drill(site: Site, job_database: Database, tmp_path: Path) -> Iterator[Drill]:
    with tempfile.TemporaryDirectory(prefix="myproxy-") as name:
        myproxy = RestartableMyProxy(site.pki, Path(name))
        try:
            with running_chain(site, myproxy.process, job_database, tmp_path, lease_s=4) as chain:
                word = f"drill-job-{secrets.token_hex(6)}"
                yield Drill(chain, myproxy, prey_of(site, word), word)
        finally:
            myproxy.kill()


@dataclass(frozen=True)
class Node:
    """What there is on the node: files on its own file systems, mounts, processes by account and program."""

    files: frozenset[str]
    mounts: tuple[str, ...]
    processes: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, site: Site) -> Node:
        mounts = Path(f"/proc/{site.node.init_pid}/mounts").read_text().splitlines()
        tops = sorted({line.split()[1] for line in mounts if line.split()[2] == "tmpfs"} - {"/sys/fs/cgroup", "/etc"})
        running = [
            (uid, " ".join(argv_of(pid).split()[:3]))
            for uid in (0, PILOT_UID, ALICE_UID, BOB_UID, OTHER_UID)
            for pid in processes_of(site, uid)
        ]
        return cls(frozenset(path for top in tops for path in _below(site, top)), tuple(mounts), tuple(sorted(running)))


def _below(site: Site, top: str) -> Iterator[str]:
    """Everything in one file system of the node, as the node names it."""
    outside = site.node.path(Path(top))
    device = outside.stat().st_dev
    for place, folders, files in os.walk(outside):
        folders[:] = [name for name in folders if (Path(place) / name).lstat().st_dev == device]
        for name in (*folders, *files):
            yield str(Path(top) / (Path(place) / name).relative_to(outside))


def test_every_job_ends_once_while_everything_is_killed(drill: Drill) -> None:
    site = drill.chain.site
    before = Node.of(site)
    drill.run(JOBS, STRIKES)
    drill.check_ends(JOBS)
    drill.check_errors(CAUSES)
    with contextlib.suppress(AssertionError):  # what a pilot's end leaves running for a moment
        wait_for(lambda: Node.of(site).processes == before.processes)
    after = Node.of(site)
    kept = {f"{PILOTS}/{handle}" for handle in drill.handles}
    kept |= {PILOTS, f"{PILOTS}/{KEPT_OF_ALL}", *(f"{place}/{name}" for place in kept for name in KEPT_OF_PILOT)}
    assert sorted(after.files - before.files - kept) == [], drill.logs()[-20000:]
    assert after.mounts == before.mounts
    assert after.processes == before.processes
