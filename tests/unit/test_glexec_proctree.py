"""What is seen of a tree of processes from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from airpanda.glexec.launcher import meter
from airpanda.glexec.launcher.meter import Meter
from airpanda.glexec.proctree import moved_by, proportional_kib, tree, usage_of

SIZE = 4 * 1024 * 1024
# A child that has ended, one that is waited for, and one that lives.
PROGRAM = f"""
import os, subprocess, sys
moves = "import os; f = os.open('/dev/zero', os.O_RDONLY); n = os.open('/dev/null', os.O_WRONLY)\\n"
moves += "for _ in range(4): os.write(n, os.read(f, {SIZE // 4}))\\n"
subprocess.run([sys.executable, "-IS", "-c", moves + "while os.times().user < 0.3: pass"], check=True)
child = subprocess.Popen([sys.executable, "-IS", "-c", moves + "print('there', flush=True); input()"])
child.wait()
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-IS", "-c", PROGRAM]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"there\n"
        yield process
        process.stdin.close()


def test_a_tree_is_measured_with_those_that_have_ended(family: subprocess.Popen[bytes]) -> None:
    usage = usage_of(family.pid)
    assert usage.processes == 1
    assert usage.cpu_s >= 0.3
    assert 2000 < usage.rss_kib < 20000, "the child's, not the waiting parent's"
    for moved in (usage.read_bytes, usage.written_bytes):
        assert 2 * SIZE <= moved < 3 * SIZE


def test_who_is_gone_or_cannot_be_looked_into_counts_nothing() -> None:
    assert moved_by([2**22 + 1, 0]) == (0, 0)
    assert usage_of(2**22 + 1).processes == 0


SHARING = """
import mmap, os
shared = mmap.mmap(-1, 64 << 20)
for _ in range(4):
    if os.fork() == 0:
        break
for i in range(0, len(shared), 4096):
    shared[i] = 1
os.write(1, b".")
os.read(0, 1)
"""


def test_what_processes_share_is_told_from_what_each_has() -> None:
    argv = [sys.executable, "-IS", "-c", SHARING]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin
        assert process.stdout
        seen = b""
        while len(seen) < 5:
            seen += process.stdout.read(1)
        usage, all_kib = usage_of(process.pid), proportional_kib(tree(process.pid))
        process.stdin.close()
    assert usage.rss_kib > 4 * 64 * 1024
    assert 64 * 1024 < usage.largest_kib < 100 * 1024
    assert usage.pss_kib is not None
    assert all_kib is not None
    assert 48 * 1024 < usage.pss_kib < all_kib < 120 * 1024


def test_whom_this_account_may_not_look_into_makes_the_sum_unknown() -> None:
    assert proportional_kib([2**22 + 1]) == 0, "who is gone has nothing"
    assert proportional_kib([os.getpid(), 2**22 + 1])
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        assert proportional_kib([os.getpid(), 1]) is None
    finally:
        os.seteuid(before)


def test_the_launchers_meter_sees_the_same_and_paces_itself(
    family: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "EVERY_S", 0.0)
    monkeypatch.setattr(meter, "_COST", 1)  # a look costs some hundredths of a second where there are many processes
    looked = Meter(family.pid, None)
    assert looked.left_s() == 0
    event = looked.look()
    assert event["event"] == "used"
    assert isinstance(event["read_bytes"], int)
    assert event["read_bytes"] >= 2 * SIZE
    assert isinstance(event["pss_kib"], int)
    assert 1000 < event["pss_kib"] < 20000, "without the first process, which is the launcher's"
    assert 0 <= looked.left_s() < 5
    monkeypatch.setattr(meter, "_COST", 1e6)
    looked.look()
    assert 5 < looked.left_s() <= 120, "a costly look is followed by a long pause, which leaves others in time"
    assert os.getpid() in tree(os.getpid())
