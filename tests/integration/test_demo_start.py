"""Starts of the demonstration that cannot succeed: one sentence, a status, nothing left, and the next one may start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import ROOT, own_python, reachable_directory
from support.need import need_root

from airpanda_demo.place import Place
from airpanda_demo.processes import marked

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

WRONG_PYTHON = """
import runpy, sys
sys.version_info = (3, 12, 1, "final", 0)
sys.argv = ["airpanda_demo", "once"]
runpy.run_module("airpanda_demo", run_name="__main__")
"""
IN_A_TINY_FILE_SYSTEM = 'mount -t tmpfs -o size=20m,mode=0711 tiny "$1"; shift; exec "$@"'


@pytest.fixture(name="directory")
def demo_directory() -> Iterator[Path]:
    with reachable_directory() as above:
        yield above / "demo of a test"


def environment(directory: Path, **variables: str) -> dict[str, str]:
    """No package index but what a test gives."""
    return {
        "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT / "include" / "demo"), "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_CACHE_DIR": "1",
        "AIRPANDA_DEMO_DIR": str(directory), **variables,
    }  # fmt: skip


def demo(directory: Path, *words: str, before: tuple[str, ...] = (), **variables: str) -> tuple[int, str]:
    """The status and what went to stderr."""
    command = [*before, own_python(), "-m", "airpanda_demo", *(words or ("once",))]
    settings = environment(directory, **variables)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert marked(directory) == []
    return done.returncode, done.stderr


def refused(outcome: tuple[int, str], *words: str) -> None:
    status, said = outcome
    assert status == 1
    assert said.startswith("airpanda demo: ")
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said


def test_wrong_python(directory: Path) -> None:
    command = [sys.executable, "-c", WRONG_PYTHON]
    done = subprocess.run(command, env=environment(directory), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "pinned for Python 3.11" in done.stderr
    assert "is Python 3.12; run it again with PYTHON=/path/to/python3.11" in done.stderr
    assert not directory.exists()


def test_port_taken(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused(demo(directory, AIRPANDA_DEMO_PORT=port), f"port {port} on the loopback interface is taken")
    assert not (directory / "venv").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("AIRPANDA_DEMO_PORT", "http"), ("AIRPANDA_DATABASE_URL", "sqlite:///x"), ("AIRPANDA_DEMO_MYPROXY", "other")],
)
def test_choices_that_cannot_be(directory: Path, name: str, value: str) -> None:
    refused(demo(directory, **{name: value}), name)
    assert not directory.exists()


def test_no_index(directory: Path) -> None:
    outcome = demo(directory, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_TIMEOUT="2")
    refused(outcome, "the package index cannot be reached", "PIP_INDEX_URL", "then run the same again")
    assert {path.name for path in directory.iterdir()} == {".airpanda-demo", "lock", "logs"}


@pytest.mark.root
def test_no_disk_space(directory: Path) -> None:
    need_root()
    directory.mkdir(mode=0o711)
    within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", IN_A_TINY_FILE_SYSTEM, "tiny")
    outcome = demo(directory, before=(*within, str(directory)))
    refused(outcome, "MB of free disk space and 2500 MB are needed", "make room")


def test_started_twice(directory: Path) -> None:
    Place(directory).claim()
    refused(demo(directory), f"already runs in {directory} (process {os.getpid()})", "stop it with Ctrl-C")


def test_a_directory_of_something_else_is_neither_used_nor_cleaned(directory: Path) -> None:
    directory.mkdir()
    (directory / "precious").write_text("data")
    for mode in ("once", "up", "clean"):
        refused(demo(directory, mode), "holds something else than a demonstration")
    assert [path.name for path in directory.iterdir()] == ["precious"]


def test_clean(directory: Path) -> None:
    assert demo(directory, "clean") == (0, "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])  # free in a moment; one below 1024 is root's alone
    refused(
        demo(directory, AIRPANDA_DEMO_PORT=port, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_TIMEOUT="2"), "index"
    )
    assert demo(directory, "clean") == (0, "")
    assert not directory.exists()


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_while_it_installs(directory: Path, sign: signal.Signals, status: int) -> None:
    """The index takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(300)
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        command = [own_python(), "-m", "airpanda_demo", "once"]
        settings = environment(directory, PIP_INDEX_URL=url)
        process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        waiting = index.accept()[0]
        assert running(directory)
        process.send_signal(sign)
        _, said = process.communicate(timeout=120)
        assert process.returncode == status
        assert said in ("", "airpanda demo: stopped\n")
        deadline = time.monotonic() + 60
        while (left := running(directory)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []
        waiting.close()
    refused(demo(directory, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_TIMEOUT="2"), "index")


def running(directory: Path) -> list[bytes]:
    """Command lines that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in line:
            found.append(line)
    return found


def test_the_packages_are_all_pinned_and_listed() -> None:
    """What the demonstration installs is what was tested."""
    constraints = (ROOT / "include" / "demo" / "constraints.txt").read_text().lower().replace("_", "-")
    for file in ("requirements.txt", "requirements-demo.txt", "include/physics/requirements.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if wanted := line.split("#")[0].strip():
                assert f"\n{wanted.lower()}\n" in constraints, wanted


def test_make_is_the_way_in(directory: Path) -> None:
    make = shutil.which("make", path="/usr/bin:/bin")
    if make is None:
        pytest.skip("NOT TESTED: make is missing")
    command = [make, "--silent", "-C", str(ROOT), "demo-clean", f"PYTHON={own_python()}"]
    done = subprocess.run(command, env=environment(directory), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"airpanda demo: there is no {directory}\n")
