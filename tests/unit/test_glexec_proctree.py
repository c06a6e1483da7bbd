"""What is seen of a tree of processes from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from airpanda.glexec.launcher import meter
from airpanda.glexec.launcher.meter import Meter
from airpanda.glexec.proctree import moved_by, tree, usage_of

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


def test_the_launchers_meter_sees_the_same_and_paces_itself(
    family: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "EVERY_S", 0.0)
    looked = Meter(family.pid, None)
    assert looked.left_s() == 0
    event = looked.look()
    assert event["event"] == "used"
    assert isinstance(event["read_bytes"], int)
    assert event["read_bytes"] >= 2 * SIZE
    assert 0 <= looked.left_s() < 5
    monkeypatch.setattr(meter, "_COST", 1e6)
    looked.look()
    assert looked.left_s() > 5, "a costly look is followed by a long pause"
    assert os.getpid() in tree(os.getpid())
