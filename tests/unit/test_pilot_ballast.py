"""A look into a sandbox that has filled the disk."""

from __future__ import annotations

import errno
import resource
import signal
from pathlib import Path

import pytest

from airpanda.pilot.as_owner import Ballast
from airpanda.pilot.limits import Scan


def test_a_look_that_finds_no_room_gets_what_was_kept_once(tmp_path: Path) -> None:
    ballast, seen = Ballast(tmp_path), Scan(1, 1, 0.0)

    def look() -> Scan:
        if (tmp_path / "ballast").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return seen

    assert (tmp_path / "ballast").stat().st_blocks * 512 >= 256 * 1024
    assert ballast.scan(look) is seen
    calls = []

    def fails() -> Scan:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        ballast.scan(fails)
    assert len(calls) == 1


def test_without_room_for_it_there_is_none(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "missing")
    with pytest.raises(OSError, match="as it was"):
        ballast.scan(lambda: (_ for _ in ()).throw(OSError("as it was")))


def test_what_little_room_there_is_is_left_to_the_payload(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
    try:
        Ballast(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
