"""The demonstration is killed, or its database is away: nothing stays, and the next start puts things right."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.canary import Canaries
from support.demo import BASE, Demo, User, make_home, own_python, running
from support.need import need_root

from airpanda_demo.processes import descendants, processes

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(2700)]

Start = Callable[..., Demo]


@pytest.fixture(name="start")
def starter(tmp_path: Path) -> Iterator[Start]:
    """Starts `make demo-once` in the directory that the other tests use, too; its packages are there."""
    need_root()
    home = Path(f"{BASE}-home of root")
    shutil.rmtree(home, ignore_errors=True)
    checkout = make_home(home)
    number = iter(range(10))

    def start(**variables: str) -> Demo:
        log = tmp_path / f"output{next(number)}"
        return Demo.start("demo-once", User(home, own_python()), checkout, BASE, log, **variables)

    yield start
    shutil.rmtree(home)


def outer_and_inner(demo: Demo) -> list[int]:
    """The process that installs and watches, and the demonstration itself."""
    outer = int((demo.directory / "lock").read_text())
    return [outer, next(child.pid for child in processes().values() if child.parent == outer)]


@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
def test_one_of_its_two_processes_is_killed(start: Start, which: int) -> None:
    with running(start()) as demo:
        demo.wait_for("worker node ready")
        demo.look()
        os.kill(outer_and_inner(demo)[which], signal.SIGKILL)
        assert demo.wait(120) != 0
        assert gone(demo)


def test_both_are_killed_and_the_next_start_finds_no_database(start: Start, canaries: Canaries) -> None:
    with running(start()) as demo:
        demo.wait_for("worker node ready")
        demo.look()
        left = [process.pid for process in descendants(outer_and_inner(demo)[1])]
        for pid in outer_and_inner(demo):
            os.kill(pid, signal.SIGKILL)
        demo.wait(120)
        assert len(left) > 5
    password = canaries.plant("database password")
    url = f"postgresql://airpanda:{password}@127.0.0.1:9/airflow"
    with running(start(AIRPANDA_DATABASE_URL=url)) as following:
        assert following.wait(300) != 0
        said = [line for line in following.text.splitlines() if line.startswith("airpanda demo: ")]
        assert len(said) == 1
        assert "the database of AIRPANDA_DATABASE_URL cannot be used" in said[0]
        assert "start it or correct the URL" in said[0]
        assert canaries.shown_in(following.text) == set()
        assert gone(demo)
        assert gone(following)


def gone(demo: Demo) -> bool:
    """Whether everything has ended, or does within a minute."""
    deadline = time.monotonic() + 60
    while demo.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    return demo.left() == []
