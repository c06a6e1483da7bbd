"""Payloads that harm their node if they can, on a worker node with a launcher; and the next job fares well."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dispatcher import job_database, spec, template_database
from support.launcher import ALICE_UID, PILOT_UID, Site
from support.myproxy_server import ServerProcess
from support.node_processes import pilots_of, processes_of
from support.pilot_chain import PILOTS, Chain, myproxy, running_chain, site
from support.postgres import Database, postgres

__all__ = ["job_database", "myproxy", "postgres", "site", "template_database"]
pytestmark = [pytest.mark.root, pytest.mark.integration]

GIB = 1024**3
FORKS = """
import os, sys, time
made = failed = 0
for _ in range(10_000):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
            os._exit(0)
        made += 1
    except BlockingIOError:
        failed += 1
print("made", made, "failed", failed)
"""
DAEMON = """(setsid sh -c 'trap "" TERM HUP INT; exec >&- 2>&- <&-; sleep 600 & sleep 600' &); echo away"""


@pytest.fixture
def chain(site: Site, myproxy: ServerProcess, job_database: Database, tmp_path: Path) -> Iterator[Chain]:
    with running_chain(site, myproxy, job_database, tmp_path) as chain:
        yield chain
        assert processes_of(site, ALICE_UID) == []
        inside = site.node.path(Path(PILOTS))
        assert [path for path in inside.glob(".*") if path.is_dir()] == []
        assert list(inside.glob("*/job-*")) == []


class Peak:
    """The most memory that a pilot of the node had, watched in a thread."""

    def __init__(self, site: Site) -> None:
        self.mib, self._site, self._over = 0.0, site, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for pid in pilots_of(self._site, PILOT_UID):
                try:
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                self.mib = max([self.mib, *(int(i.split()[1]) / 1024 for i in lines if i.startswith("VmHWM"))])


def run(chain: Chain, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """All of them by one pilot, and their views."""
    task = chain.submit("alice", *jobs)
    handles = chain.send_pilots(1)
    chain.wait(task["task_id"], 240)
    chain.pilots_end(handles)
    return chain.jobs(task["task_id"])


def log(chain: Chain, job: dict[str, Any]) -> str:
    return chain.http.get(f"/v1/job/{job['panda_id']}/log").text


def test_ten_thousand_forks_and_daemons_end_with_their_job(chain: Chain) -> None:
    forks = spec("forks", argv=["python3", "-IS", "forks.py"], scripts={"forks.py": FORKS}, walltime_s=120)
    daemon = spec("daemon", argv=["sh", "-c", DAEMON], walltime_s=120)
    forked, away, next_one = run(chain, forks, daemon, spec("next", argv=["echo", "well"]))
    assert {job["status"] for job in (forked, away, next_one)} == {"finished"}
    made, failed = (int(word) for word in log(chain, forked).split()[1::2])
    assert made + failed == 10_000
    assert 0 < made < 256, "the launcher's max_processes"
    assert log(chain, away) == "away\n"
    assert log(chain, next_one) == "well\n"


def test_ten_gigabytes_of_output_are_read_and_not_kept(chain: Chain) -> None:
    begin = time.monotonic()
    shout = spec("shout", argv=["sh", "-c", "head -c 10737418240 /dev/zero; echo; echo the end"], walltime_s=600)
    with Peak(chain.site) as peak:
        (job,) = run(chain, shout)
    assert job["status"] == "finished"
    (kept,) = [file for file in job["logs"] if file["lfn"] == "payload.log"]
    assert 64 * 1024**2 <= kept["size"] < 65 * 1024**2
    assert log(chain, job).endswith(f"[the log was cut here: {10 * GIB + 9} bytes were printed, {2**26} are kept]\n")
    print(f"10 GiB in {time.monotonic() - begin:.0f} s, pilot at most {peak.mib:.0f} MiB")
    assert 0 < peak.mib < 80


STUBBORN = """trap '' TERM HUP INT; (setsid sh -c 'trap "" TERM; sleep 600' &); while :; do sleep 0.2; done"""


def test_payloads_that_harm_themselves_harm_nobody_else(chain: Chain) -> None:
    """One after the other in one pilot: each ends with its own cause, and the pilot's own steps do not stumble."""

    def harms(name: str, script: str, **more: Any) -> dict[str, Any]:
        return spec(name, argv=["sh", "-c", script], **{"walltime_s": 120, "max_attempt": 1, **more})

    deleted, closed, locked, shows, large, stubborn, next_one = run(
        chain,
        harms("deleted", 'cd /; rm -rf "$HOME" 2>/dev/null; echo gone; sleep 3'),
        harms("closed", "echo before; exec >&- 2>&- <&-; sleep 1; exit 7"),
        harms("locked", "mkdir d; echo x > d/f; chmod 0 d .; exit 0", outputs=[{"lfn": "d"}]),
        harms("shows", r"printf '\033[2J\033]0;title\007\000\377end\n'; exit 5"),
        harms("large", "head -c 11000000 /dev/zero > out", disk_mib=10, outputs=[{"lfn": "out"}]),
        harms("stubborn", STUBBORN, walltime_s=3),
        harms("next", "echo well"),
    )

    def end(job: dict[str, Any]) -> tuple[str, int | None, list[tuple[int, str]]]:
        attempt = job["attempts"][0]  # the latest; on a busy machine one may have lost its lease, which costs nothing
        told = [(error["code"], error["blame"]) for error in attempt["errors"]]
        return job["status"], attempt["exit_code"], told

    assert end(deleted) == ("finished", 0, [])
    assert log(chain, deleted) == "gone\n"
    assert end(closed) == ("failed", 7, [(7, "user")])
    assert end(locked) == ("failed", 0, [(1165, "user")])
    assert end(shows) == ("failed", 5, [(5, "user")])
    assert log(chain, shows) == "\ufffd[2J\ufffd]0;title\ufffd\ufffd\ufffdend\n", (
        "what people see does nothing to a screen"
    )
    assert shows["attempts"][0]["errors"][0]["diag"].isprintable()
    assert end(large) == ("failed", 0, [(1124, "user")])
    assert end(stubborn) == ("failed", 137, [(1213, "user")])
    assert end(next_one) == ("finished", 0, [])
    assert log(chain, next_one) == "well\n"


def small_disk(site: Site, mib: int) -> None:
    """A file system of its own below the pilots' directories."""
    place, options = site.node.path(Path(PILOTS)), f"size={mib}m,mode=0755,uid={PILOT_UID},gid={PILOT_UID}"
    place.mkdir(exist_ok=True)
    argv = [*site.node.root_argv(), "mount", "-t", "tmpfs", "-o", options, "tmpfs", PILOTS]
    subprocess.run(argv, check=True, timeout=20)


@pytest.mark.parametrize("then", ["exit 0", "sleep 60"])
def test_a_payload_that_fills_the_disk_learns_why_it_failed(chain: Chain, then: str) -> None:
    """Whether it dies of it or sits on it: its own fault, and nothing of it stays; the next job has the room."""
    small_disk(chain.site, 700)
    try:
        fill = spec("fill", argv=["sh", "-c", f"cat /dev/zero > big || {then}"], walltime_s=120, disk_mib=100)
        fill["max_attempt"] = 1
        if then == "exit 0":
            fill["argv"] = ["sh", "-c", "cat /dev/zero > big"]
        filled, next_one = run(chain, fill, spec("next", argv=["echo", "well"], disk_mib=100))
        assert (filled["status"], next_one["status"]) == ("failed", "finished")
        (attempt,) = filled["attempts"]
        first, *others = attempt["errors"]
        assert (first["code"], first["blame"]) == (1104, "user")
        assert "100 asked for" in first["diag"]
        assert {error["source"] for error in others} <= {"exe", "pilot"}
        assert log(chain, next_one) == "well\n"
    finally:
        subprocess.run([*chain.site.node.root_argv(), "umount", "-l", PILOTS], check=True, timeout=20)
