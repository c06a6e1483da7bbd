"""What a payload prints: bounded, live, whole up to the limit."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from airpanda.pilot.capture import Capture


def writer(capture: Capture, script: str) -> subprocess.Popen[bytes]:
    with open(capture.source, "ab") as out:
        return subprocess.Popen(["sh", "-c", script], stdout=out, stderr=out)


def test_an_existing_log_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/etc/passwd")
    with pytest.raises(FileExistsError):
        Capture(tmp_path / "log", max_bytes=10)


def test_everything_up_to_the_limit_and_then_a_word(tmp_path: Path) -> None:
    with Capture(tmp_path / "log", max_bytes=100_000) as capture:
        writer(capture, "head -c 5000000 /dev/zero").wait(20)
    assert capture.was_cut
    data = (tmp_path / "log").read_bytes()
    assert data[:100_000] == b"\0" * 100_000
    assert data[100_000:] == b"\n[the log was cut here: 5000000 bytes were printed, 100000 are kept]\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    assert not capture.source.exists()


def test_what_is_printed_last_before_the_end_is_kept(tmp_path: Path) -> None:
    for number in range(20):
        with Capture(tmp_path / f"log{number}", max_bytes=1_000_000) as capture:
            writer(capture, "head -c 60000 /dev/zero; echo last").wait(20)
        assert (tmp_path / f"log{number}").read_bytes()[60000:] == b"last\n"


def test_two_writers_and_a_survivor_that_never_closes(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "log", max_bytes=1000)
    writer(capture, "echo one").wait(20)
    survivor = writer(capture, "echo two; exec sleep 30")
    while b"two" not in (tmp_path / "log").read_bytes():
        time.sleep(0.01)
    capture.finish()
    capture.finish()
    survivor.kill()
    survivor.wait()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_writer_that_never_stops_cannot_hold_up_the_end(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "log", max_bytes=1000)
    flood = writer(capture, "exec yes")
    time.sleep(0.2)
    done = threading.Thread(target=capture.finish)
    done.start()
    done.join(20)
    assert not done.is_alive()
    flood.kill()
    flood.wait()


def test_the_tail_is_text_without_keys_and_escapes(tmp_path: Path) -> None:
    with Capture(tmp_path / "log", max_bytes=100_000) as capture:
        descriptor = os.open(capture.source, os.O_WRONLY)
        key = b"-----BEGIN RSA PRIVATE KEY-----\nMIIcanary\n-----END RSA PRIVATE KEY-----\n"
        os.write(descriptor, b"x" * 1000 + b"\x1b[2J\xff\n" + key + b"after\n-----BEGIN PRIVATE KEY-----\ncut canary")
        os.close(descriptor)
    tail = capture.tail(100)
    assert len(tail) <= 100
    assert "canary" not in capture.tail(50_000)
    assert tail.endswith("[private key removed]\nafter\n[private key removed]")
    assert "\x1b" not in tail
