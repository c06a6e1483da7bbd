"""The launcher's slots are its callers': who is none gets no process, and nobody gets all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support.launcher import ALICE_UID, Site, make_site, wait_for

from airpanda_demo.worker_node import INSTALLED

pytestmark = [pytest.mark.root, pytest.mark.integration]

MAX_RUNS = 4

DRIP = """
import array, os, socket, struct, sys, time
connections = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
rights = array.array("i", [0, 1, 2, os.open(".", os.O_RDONLY)])
left = 0
for connection in connections:
    connection.connect(sys.argv[1])
    try:
        connection.sendmsg([struct.pack("!I", 1 << 20)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError:
        left += 1
print(f"connected {left}", flush=True)
end = time.monotonic() + float(sys.argv[3])
while connections and time.monotonic() < end:
    time.sleep(0.3)
    for connection in list(connections):
        try:
            connection.send(b" ")
        except OSError:
            connections.remove(connection)
print(f"open {len(connections)}", flush=True)
"""


@pytest.fixture(scope="module", name="site")
def node_site() -> Iterator[Site]:
    for site in make_site(max_runs=str(MAX_RUNS), max_runs_per_caller=str(MAX_RUNS // 2)):
        config = site.node.path(INSTALLED.config)
        config.write_text(config.read_text().replace("callers = pilot\n", "callers = pilot robot\n"))
        yield site


def drip(site: Site, account: str, count: int, seconds: float) -> subprocess.Popen[str]:
    """Somebody who keeps connections open by a byte now and then; returns when they are made."""
    command = [*site.node.enter_argv(account), sys.executable, "-c", DRIP, str(INSTALLED.socket), str(count)]
    process = subprocess.Popen([*command, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("connected")
    return process


def test_others_than_callers_occupy_nothing(site: Site) -> None:
    before = len(site.node.records())
    process = drip(site, "other", 20, 60)
    ran = site.glexec_run("/usr/bin/id", "-u")
    assert (ran.code, ran.out) == (0, f"{ALICE_UID}\n"), ran
    assert process.communicate(timeout=120)[0] == "open 0\n"
    refused = [record for record in site.node.records()[before:] if record["caller"] == "other"]
    assert 1 <= len(refused) < 20
    assert {record["rc"] for record in refused} == {203}


def test_one_caller_leaves_slots_to_others(site: Site) -> None:
    process = drip(site, "robot", MAX_RUNS, 4)
    ran = site.glexec_run("/usr/bin/id", "-u")
    assert (ran.code, ran.out) == (0, f"{ALICE_UID}\n"), ran
    assert process.communicate(timeout=120)[0] == f"open {MAX_RUNS // 2}\n"


def test_a_caller_is_told_that_it_has_enough(site: Site) -> None:
    env = {"GLEXEC_CLIENT_CERT": str(site.put_proxy())}
    running = [
        site.start(site.glexec, "/bin/sh", "-c", "read x", env=env, stdin=subprocess.PIPE) for _ in range(MAX_RUNS // 2)
    ]
    wait_for(lambda: len(site.processes(ALICE_UID)) == len(running))
    ran = site.glexec_run("/usr/bin/id")
    for process in running:
        process.communicate(b"\n", timeout=60)
    assert (ran.code, ran.out) == (202, "")
    assert f"{MAX_RUNS // 2} runs of this caller" in ran.err


def test_a_request_has_one_time_for_all_of_it(site: Site) -> None:
    """Ten seconds, however often a byte comes."""
    began = time.monotonic()
    process = drip(site, "robot", 1, 90)
    assert process.communicate(timeout=120)[0] == "open 0\n"
    assert time.monotonic() - began < 80


def test_the_socket_is_not_in_a_payloads_view(site: Site) -> None:
    ran = site.glexec_run("/bin/sh", "-c", f"test -S {INSTALLED.socket}; echo $?; test -e {INSTALLED.socket}; echo $?")
    assert ran.out == "1\n0\n"
    assert os.path.exists(site.node.path(INSTALLED.socket))
