"""The hunt finds what it should: a fixture that cannot fail would guard nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.canary import Canaries

from airpanda.core.secret import Secret

PEM = b"-----BEGIN PRIVATE KEY-----\n" + b"Q" * 64 + b"\nQQ==\n-----END PRIVATE KEY-----\n"


def test_a_planted_secret_is_found_and_not_named(canaries: Canaries, tmp_path: Path) -> None:
    value = canaries.plant("passphrase")
    (tmp_path / "log").write_text(f"password={value}!")
    assert canaries.shown_in(f"x{value}y") == {"passphrase"}
    assert canaries.shown_in_files(tmp_path.iterdir()) == {tmp_path / "log": {"passphrase"}}
    assert canaries.shown_in("nothing here") == set()


def test_every_secret_of_the_product_is_a_canary(canaries: Canaries) -> None:
    assert canaries.shown_in(Secret.random().reveal()) == {"Secret"}


def test_a_key_is_found_by_its_body() -> None:
    canaries = Canaries()
    canaries.remember(PEM, "key")
    assert canaries.shown_in(PEM) == {"key"}
    assert canaries.shown_in(b"-----BEGIN PRIVATE KEY-----\n") == set()


def test_a_secret_in_a_process_argument_is_found() -> None:
    canaries = Canaries()
    value = canaries.plant("token")
    command = [sys.executable, "-c", "print(flush=True); input()", value]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # its arguments are in place
        assert canaries.shown_by_processes() == {f"{child.pid}/cmdline": {"token"}}
        child.communicate(b"\n")
    assert canaries.shown_by_processes() == {}


def test_a_test_that_shows_a_secret_fails(tmp_path: Path) -> None:
    """A whole inner run, because what is tested is the suite's own report hook."""
    inner = tmp_path / "test_inner.py"
    inner.write_text(
        "from airpanda.core.secret import Secret\n"
        "def test_shows():\n    print(Secret.random().reveal())\n"
        "def test_raises():\n    raise RuntimeError(Secret.random().reveal())\n"
        "def test_keeps():\n    print(Secret.random())\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={root}", f"-c{root}/pyproject.toml"]
        + [f"--confcutdir={root}", "-p", "conftest", "-v", str(inner)],
        capture_output=True, text=True, cwd=root / "tests", timeout=60, check=False,
    )  # fmt: skip
    assert "test_shows FAILED" in run.stdout
    assert "test_raises FAILED" in run.stdout
    assert "test_keeps PASSED" in run.stdout
    assert "shows a secret (Secret)" in run.stdout


@pytest.mark.parametrize("others", [0, 1000])
def test_each_of_many_is_found_wherever_it_stands(others: int) -> None:
    canaries = Canaries()
    for n in range(others):
        canaries.remember(f"{n:04} is another secret", "other")
    alike = [f"the same beginning {n}" for n in range(3)]
    for n, value in enumerate(alike):
        canaries.remember(value, f"kind {n}")
    canaries.remember("exactly12byt", "shortest")
    canaries.remember("too short", "never")
    assert canaries.shown_in(f"x{alike[1]}") == {"kind 1"}
    assert canaries.shown_in(f"{alike[0]}{alike[2]}exactly12byt") == {"kind 0", "kind 2", "shortest"}
    assert canaries.shown_in(b"\xffexactly12byt\x00") == {"shortest"}
    assert canaries.shown_in("the same beginning, exactly12by, too short") == set()
    assert canaries.shown_in("") == set()
