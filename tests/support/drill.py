"""A drill of a whole chain: jobs run while everything that they need is killed, one after another.

A test says what there is to be killed (``Prey``) and which errors may be told of it (``Cause``); ``Drill`` does it and
looks whether every job has ended once, with the right output, and the errors name what was really killed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from airpanda.computing.elements import Handle, make_element
from support.dispatcher import spec
from support.launcher import host_status, wait_for
from support.myproxy_server import CONFIG, ServerProcess
from support.need import need_program
from support.node_processes import command_of
from support.pilot_chain import WRAPPER, Chain
from support.pki import Pki

SEED = 5
PILOTS_AT_ONCE, PATIENCE_S = 4, 60.0
PAUSE_S = (0.5, 2.0)
FINAL = ("finished", "failed", "cancelled", "closed")
ERRORS = """
SELECT e->>'source', (e->>'code')::int, e->>'diag', e->>'blame', count(*)
FROM panda_attempt, json_array_elements(errors::json) e GROUP BY 1, 2, 3, 4
"""
# What the local computing element keeps of each pilot until its record is purged, and of all of them.
KEPT_OF_PILOT = ("exit", "pilot.log", "handle.json", "wrapper.sh", "run.lock", "tmp")
KEPT_OF_ALL = ".submit.lock"
Prey = Callable[[], Sequence[int]]
"""The processes of one kind that there are now."""


@dataclass(frozen=True, eq=False)
class Cause:
    """An error that may be told: how its text begins, whose fault it is, and how often for each kill of a kind."""

    says: str
    blame: str
    at_most: Mapping[str, int]


class RestartableMyProxy:
    """Debian's server on a port that stays the same over restarts."""

    def __init__(self, pki: Pki, directory: Path) -> None:
        self._program = need_program("myproxy-server", "myproxy-server")
        self._pki, self._directory = pki, directory
        (directory / "store").mkdir(mode=0o700)
        (directory / "config").write_text(CONFIG.replace("cert_dir {certs}\n", ""))
        self.port = 0
        self.start()

    def start(self) -> None:
        place, host = self._directory, self._pki.host()
        for name in ("pid", "port"):
            (place / name).unlink(missing_ok=True)
        environment = {
            "PATH": "/usr/sbin:/usr/bin",
            "HOME": str(place),
            "X509_CERT_DIR": str(self._pki.ca_dir),
            "X509_USER_CERT": str(host.cert),
            "X509_USER_KEY": str(host.key),
        }
        argv = [self._program, "-c", f"{place}/config", "-s", f"{place}/store", "-l", "127.0.0.1"]
        argv += ["-p", str(self.port), "-P", f"{place}/pid", "-z", f"{place}/port"]
        subprocess.run(argv, env=environment, check=True, timeout=60)
        self.pid = int(wait_for(lambda: _text(place / "pid")))
        self.port = int(wait_for(lambda: _text(place / "port")))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def process(self) -> ServerProcess:
        return ServerProcess("debian", self.port, self.pid, self._directory / "store", self._pki)


@dataclass
class Drill:
    """Who is killed, and what was. ``word`` stands in the arguments of every payload and of nothing else."""

    chain: Chain
    myproxy: RestartableMyProxy
    prey: Mapping[str, Prey]
    word: str
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    handles: list[Handle] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)

    def run(self, n_jobs: int, strikes: Sequence[str]) -> None:
        """Until all jobs are final and all pilots have gone; half of the jobs are Alice's and half Bob's."""
        # Something comes after the sleep: else the shell becomes it, and its arguments with it.
        argv = ["sh", "-c", f'echo "$PandaID" > out.txt; sleep 0.5; true # {self.word}']
        asked = {"outputs": [{"lfn": "out.txt"}], "walltime_s": 120, "max_attempt": 10}
        jobs = [spec(f"j{i}", argv=argv, **asked) for i in range(n_jobs)]
        tasks = [self.chain.submit(who, *jobs[i::2])["task_id"] for i, who in enumerate(("alice", "bob"))]
        turn = iter([*strikes] * (1 + n_jobs // 60))
        until = time.monotonic() + 300 + 6 * n_jobs
        while not all(map(self._is_done, tasks)):
            assert time.monotonic() < until, f"killed {dict(self.killed)}; {self.logs()[-5000:]}"
            self._keep_pilots()
            time.sleep(self.chance.uniform(*PAUSE_S))
            if (what := next(turn, "")) != "":
                self._strike(what)
        self.chain.pilots_end(self.handles)
        assert min(self.killed[what] for what in strikes) > 0, self.killed

    def logs(self) -> str:
        return self.chain.logs(self.handles)

    def check_ends(self, n_jobs: int) -> None:
        """Every job has ended well, once, and its output is its own."""
        chain = self.chain
        once = chain.sql(
            f"SELECT panda_id, count(*) FROM panda_job_status_log WHERE new_status IN {FINAL} GROUP BY panda_id"
        )
        assert len(once) == n_jobs
        assert {count for _, count in once} == {1}, "a job ended more than once"
        assert {str(row[0]) for row in chain.sql("SELECT DISTINCT status FROM panda_job")} == {"finished"}
        for panda_id, _ in once:
            assert chain.http.get(f"/v1/file/{panda_id}/out.txt").text == f"{panda_id}\n"

    def check_errors(self, causes: Mapping[tuple[str, int], Sequence[Cause]]) -> None:
        """Every error that was told has one of these causes, and none is told more often than it was made."""
        counts: Counter[Cause] = Counter()
        for source, code, diag, blame, count in self.chain.sql(ERRORS):
            found = [each for each in causes.get((source, code), ()) if re.match(each.says, diag)]
            assert found, f"nothing that was killed explains {source} error {code}: {diag}"
            assert {blame} == {each.blame for each in found}, f"{blame} is not to blame for: {diag}"
            counts[found[0]] += count
        for cause, count in counts.items():
            assert count <= sum(n * self.killed[what] for what, n in cause.at_most.items()), (cause, self.killed)
        print(f"killed {dict(self.killed)}, {len(self.handles)} pilots; told:")
        print(*(f"{count} x {cause.says}" for cause, count in counts.items()), sep="\n")

    def _strike(self, what: str) -> None:
        """Kill one of these; if there is none now, the next one that comes: pilots may have to start first."""
        act = {"gateway": self._gateway, "myproxy": self._myproxy}.get(what, lambda: self._kill_one(self.prey[what]()))
        until = time.monotonic() + PATIENCE_S
        while not (done := act()) and time.monotonic() < until:
            time.sleep(0.005)
            if time.monotonic() > until - PATIENCE_S / 2:
                self._keep_pilots()
        self.killed[what] += done

    def _gateway(self) -> bool:
        self.chain.gateway.kill()
        self.chain.gateway.start()
        return True

    def _myproxy(self) -> bool:
        self.myproxy.kill()
        time.sleep(self.chance.uniform(0.2, 1.0))
        self.myproxy.start()
        return True

    def _kill_one(self, pids: Sequence[int]) -> bool:
        if not pids:
            return False
        try:
            os.kill(self.chance.choice(sorted(pids)), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _is_done(self, task_id: int) -> bool:
        """Whether the panda task is done; a gateway that is down knows of no progress."""
        try:
            return bool(self.chain.call("GET", f"/v1/task/{task_id}/progress")["done"])
        except httpx.TransportError:
            return False

    def _keep_pilots(self) -> None:
        """Send as many as have gone."""
        element = make_element(self.chain.queue, WRAPPER)
        alive = sum(not status.state.is_final for status in element.status(self.handles).values())
        missing = PILOTS_AT_ONCE - alive
        if missing > 0:
            try:
                self.handles += self.chain.send_pilots(missing)
            except httpx.TransportError:
                return


def having(word: str) -> dict[int, str]:
    """The processes of this machine that have it in their arguments; a short look, for prey that is soon gone."""
    sought, found = word.encode(), {}
    for name in os.listdir("/proc"):
        if name.isdigit() and sought in (argv := _arguments(name)) and int(name) != os.getpid():
            found[int(name)] = argv.replace(b"\0", b" ").decode(errors="replace")
    return found


def _arguments(pid: str) -> bytes:
    """As ``command_of``, in a third of its time."""
    try:
        descriptor = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def uid_of(pid: int) -> int:
    """Its real uid; none, -1, where it is gone."""
    status = host_status(pid)
    return int(status["Uid"].split()[0]) if status else -1


def argv_of(pid: int) -> str:
    return command_of(pid).replace(b"\0", b" ").decode(errors="replace")


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
