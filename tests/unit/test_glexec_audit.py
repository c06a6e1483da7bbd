"""The launcher's log where a disk or a limit gets in its way."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airpanda.core.errors import ConfigurationError
from airpanda.glexec.launcher import audit, limits

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(name="told")
def _told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What syslog gets."""
    told: list[str] = []
    monkeypatch.setattr(audit, "check_trusted", lambda path: None)
    monkeypatch.setattr(audit.syslog, "syslog", lambda level, text: told.append(text))
    return told


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_short_writes_are_continued(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    log = audit.Audit(tmp_path / "log", to_syslog=False)
    monkeypatch.setattr(audit.os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    log.started({"id": "a"}, now=NOW)
    log.write({"id": "a", "rc": 0}, now=NOW)
    monkeypatch.undo()
    first, second = lines(tmp_path / "log")
    assert (first["event"], first["id"]) == ("started", "a")
    assert second == {"time": first["time"], "id": "a", "rc": 0}
    assert told == []


@pytest.fixture(name="full")
def _full(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> audit.Audit:
    """A log with one record on a disk that takes ten bytes more."""
    log = audit.Audit(tmp_path / "log", to_syslog=False)
    log.write({"id": "before"}, now=NOW)
    write, end = os.write, (tmp_path / "log").stat().st_size + 10

    def limited(descriptor: int, data: bytes) -> int:
        left = end - os.fstat(descriptor).st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:left])

    monkeypatch.setattr(audit.os, "write", limited)
    return log


def test_what_cannot_be_recorded_whole_does_not_start(full: audit.Audit, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No space left"):
        full.started({"id": "a"}, now=NOW)
    assert [line["id"] for line in lines(tmp_path / "log")] == ["before"]


def test_an_outcome_that_does_not_fit_goes_elsewhere(
    full: audit.Audit, tmp_path: Path, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    full.write({"id": "a\nb", "rc": 7}, now=NOW)
    assert [line["id"] for line in lines(tmp_path / "log")] == ["before"]
    assert told == ['id="a\\nb" rc=7 log_file="No space left on device"']
    assert told[0] in capsys.readouterr().err


LIMITED = """
import resource, sys
from airpanda.glexec.launcher.limits import lift, restore
kind, soft = int(sys.argv[1]), int(sys.argv[2])
hard = resource.getrlimit(kind)[1]
resource.setrlimit(kind, (soft, hard))
lifted = lift()
during = resource.getrlimit(kind)[0]
restore(lifted)
print(during, resource.getrlimit(kind) == (soft, hard))
"""


@pytest.mark.parametrize(("kind", "soft"), [(resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CPU, 60)])
def test_the_callers_limits_are_lifted_and_given_back(kind: int, soft: int) -> None:
    if resource.getrlimit(kind)[1] != resource.RLIM_INFINITY and os.geteuid() != 0:
        pytest.skip("NOT TESTED: this account has a hard limit of its own")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(kind), str(soft)],
        env={"PYTHONPATH": str(Path(limits.__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [str(resource.RLIM_INFINITY), "True"]


def test_a_callers_record_has_no_second_line_behind_half_of_a_first(tmp_path: Path) -> None:
    """Its disk is full for a moment: what comes then must not be read as part of what was cut off."""
    path = tmp_path / "record"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        record = audit.CallerRecord(descriptor)
        record.write({"event": "started"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
        record.write({"event": "used", "read_bytes": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        record.write({"event": "ended", "exit_code": 0})
        os._exit(0 if not record.is_open else 1)
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_text() == '{"event":"started"}\n{"event":"'
