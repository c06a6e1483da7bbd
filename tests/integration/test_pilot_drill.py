"""The drill: 200 short jobs while pilots, launchers, payloads, gateway and MyProxy are killed in turn.

Every job must end final exactly once, nothing may stay on the node, and each error must name what was really killed.
``AIRPANDA_DRILL_JOBS`` makes it shorter or longer.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, BOB_UID, PILOT_UID, Site, make_site, wait_for
from support.myproxy_server import CONFIG, ServerProcess
from support.need import need_program
from support.node_processes import command_of, pilots_of, processes_of
from support.pilot_chain import PILOTS, WRAPPER, Chain, running_chain
from support.postgres import Database, postgres

from airpanda.computing.elements import Handle, make_element

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(1500)]

JOBS = int(os.environ.get("AIRPANDA_DRILL_JOBS", "200"))
SEED = 5
PILOTS_AT_ONCE, PATIENCE_S = 4, 15.0
LIMIT_S = 60 + 6 * JOBS
STRIKES = (
    "payload", "client", "pilot", "launcher", "daemon", "gateway", "pilot", "payload", "launcher", "myproxy",
)  # fmt: skip
PAUSE_S = (0.5, 2.0)
HOW_OFTEN = """
SELECT (e->>'source') || ' ' || (e->>'code'), count(*) FROM panda_attempt, json_array_elements(errors::json) e
GROUP BY 1
"""
FINAL = ("finished", "failed", "cancelled", "closed")
# What may stand in an error of the drill: what was killed, told by who noticed.
CAUSES = {
    ("jobDispatcher", 100): "a killed pilot: its heartbeats were lost; or a gateway that was away longer than a lease",
    ("pilot", 1226): "a killed launcher, its daemon or its client",
    ("pilot", 1163): "a killed MyProxy server",
    ("exe", 137): "a killed payload, and nothing else",
}


class RestartableMyProxy:
    """Debian's server on a port that stays the same over restarts."""

    def __init__(self, site: Site, directory: Path) -> None:
        self._program = need_program("myproxy-server", "myproxy-server")
        self._site, self._directory = site, directory
        (directory / "store").mkdir(mode=0o700)
        (directory / "config").write_text(CONFIG.replace("cert_dir {certs}\n", ""))
        self.port = 0
        self.start()

    def start(self) -> None:
        place, host = self._directory, self._site.pki.host()
        for name in ("pid", "port"):
            (place / name).unlink(missing_ok=True)
        environment = {
            "PATH": "/usr/sbin:/usr/bin",
            "HOME": str(place),
            "X509_CERT_DIR": str(self._site.pki.ca_dir),
            "X509_USER_CERT": str(host.cert),
            "X509_USER_KEY": str(host.key),
        }
        argv = [self._program, "-c", f"{place}/config", "-s", f"{place}/store", "-l", "127.0.0.1"]
        argv += ["-p", str(self.port), "-P", f"{place}/pid", "-z", f"{place}/port"]
        subprocess.run(argv, env=environment, check=True, timeout=20)
        self.pid = int(wait_for(lambda: _text(place / "pid")))
        self.port = int(wait_for(lambda: _text(place / "port")))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def process(self) -> ServerProcess:
        return ServerProcess("debian", self.port, self.pid, self._directory / "store", self._site.pki)


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


@dataclass
class Drill:
    """Who is killed, and what was."""

    chain: Chain
    myproxy: RestartableMyProxy
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    handles: list[Handle] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)

    def strike(self, what: str) -> None:
        """Kill one of these; if there is none now, the next one that comes within some seconds."""
        act: Callable[[], bool] = getattr(self, f"_{what}")
        until = time.monotonic() + PATIENCE_S
        while not (done := act()) and time.monotonic() < until:
            time.sleep(0.02)
        self.killed[what] += done

    def _pilot(self) -> bool:
        return self._kill_one(pilots_of(self.chain.site, PILOT_UID))

    def _payload(self) -> bool:
        site = self.chain.site
        pids = [pid for uid in (ALICE_UID, BOB_UID) for pid in processes_of(site, uid) if "drill-job" in _argv(pid)]
        return self._kill_one(pids)

    def _launcher(self) -> bool:
        """The root process that serves one payload."""
        return self._kill_one([p for p in self._launchers() if "airpanda-launcherd" in _argv(_parent(p))])

    def _daemon(self) -> bool:
        """The one above all of those; the node starts another one."""
        return self._kill_one([p for p in self._launchers() if "airpanda-launcherd" not in _argv(_parent(p))])

    def _launchers(self) -> list[int]:
        return [pid for pid in processes_of(self.chain.site, 0) if "airpanda-launcherd" in _argv(pid)]

    def _client(self) -> bool:
        """The pilot's end of the switch, while it holds a payload."""
        pids = [pid for pid in processes_of(self.chain.site, PILOT_UID) if "drill-job" in _argv(pid)]
        return self._kill_one(pids)

    def _gateway(self) -> bool:
        self.chain.gateway.kill()
        self.chain.gateway.start()
        return True

    def _myproxy(self) -> bool:
        self.myproxy.kill()
        time.sleep(self.chance.uniform(0.2, 1.0))
        self.myproxy.start()
        return True

    def _kill_one(self, pids: list[int]) -> bool:
        if not pids:
            return False
        try:
            os.kill(self.chance.choice(sorted(pids)), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def progress(self, task_id: int) -> bool:
        """Whether the panda task is done; a gateway that is down knows of no progress."""
        try:
            return bool(self.chain.call("GET", f"/v1/task/{task_id}/progress")["done"])
        except httpx.TransportError:
            return False

    def keep_pilots(self) -> None:
        """Send as many as have gone."""
        element = make_element(self.chain.queue, WRAPPER)
        alive = sum(not status.state.is_final for status in element.status(self.handles).values())
        missing = PILOTS_AT_ONCE - alive
        if missing > 0:
            try:
                self.handles += self.chain.send_pilots(missing)
            except httpx.TransportError:
                return


def _argv(pid: int) -> str:
    return command_of(pid).replace(b"\0", b" ").decode(errors="replace")


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def mounts(site: Site) -> int:
    return len(Path(f"/proc/{site.node.init_pid}/mounts").read_text().splitlines())


@pytest.fixture(scope="module", name="site")
def _site() -> Iterator[Site]:
    for site in make_site(respawn=True):
        site.node.set_mapfile({**site.mapfile, site.pki.dn("pilot"): "other"})
        yield site


@pytest.fixture
def drill(site: Site, job_database: Database, tmp_path: Path) -> Iterator[Drill]:
    with tempfile.TemporaryDirectory(prefix="myproxy-") as name:
        myproxy = RestartableMyProxy(site, Path(name))
        try:
            with running_chain(site, myproxy.process, job_database, tmp_path) as chain:
                yield Drill(chain, myproxy)
        finally:
            myproxy.kill()


def left_on_the_node(site: Site) -> list[str]:
    """Sandboxes, what jobs have in the pilots' directories, and processes of the accounts."""
    inside = site.node.path(Path(PILOTS))
    left = [str(path) for path in inside.glob(".*") if path.is_dir()]
    left += [str(path) for path in inside.glob("*/job-*")]
    return left + [f"{pid} {_argv(pid)}" for uid in (ALICE_UID, BOB_UID) for pid in processes_of(site, uid)]


def test_every_job_ends_once_while_everything_is_killed(drill: Drill) -> None:
    chain, before = drill.chain, mounts(drill.chain.site)
    argv = ["sh", "-c", 'echo "$PandaID" > out.txt; sleep 0.5 # drill-job']
    jobs = [spec(f"j{i}", argv=argv, outputs=[{"lfn": "out.txt"}], walltime_s=120, max_attempt=10) for i in range(JOBS)]
    tasks = [chain.submit("alice", *jobs[::2])["task_id"], chain.submit("bob", *jobs[1::2])["task_id"]]
    turn = iter(STRIKES * (1 + JOBS // 60))
    until = time.monotonic() + LIMIT_S
    while not all(map(drill.progress, tasks)):
        assert time.monotonic() < until, f"killed {dict(drill.killed)}; {chain.logs(drill.handles)[-5000:]}"
        drill.keep_pilots()
        time.sleep(drill.chance.uniform(*PAUSE_S))
        if (what := next(turn, "")) != "":
            drill.strike(what)
    chain.pilots_end(drill.handles)

    once = chain.sql(
        f"SELECT panda_id, count(*) FROM panda_job_status_log WHERE new_status IN {FINAL} GROUP BY panda_id"
    )
    assert len(once) == JOBS
    assert {count for _, count in once} == {1}, "a job ended more than once"
    assert {str(row[0]) for row in chain.sql("SELECT DISTINCT status FROM panda_job")} == {"finished"}
    errors = chain.sql(
        "SELECT DISTINCT e->>'source', (e->>'code')::int, e->>'diag' "
        "FROM panda_attempt, json_array_elements(errors::json) e"
    )
    assert [row for row in errors if (row[0], row[1]) not in CAUSES] == []
    counts = Counter(dict(chain.sql(HOW_OFTEN)))
    assert counts["exe 137"] <= drill.killed["payload"], "the payload is blamed only where it was killed itself"
    assert counts["jobDispatcher 100"] <= drill.killed["pilot"] + PILOTS_AT_ONCE * drill.killed["gateway"]
    assert counts["pilot 1163"] == 0 or drill.killed["myproxy"] > 0
    for panda_id, _ in once:
        assert chain.http.get(f"/v1/file/{panda_id}/out.txt").text == f"{panda_id}\n"
    assert left_on_the_node(chain.site) == [], chain.logs(drill.handles)[-20000:]
    assert mounts(chain.site) == before
    assert min(drill.killed[what] for what in STRIKES) > 0, drill.killed
    print(f"killed {dict(drill.killed)}, {len(drill.handles)} pilots, errors {dict(counts)}")
