"""The pilot's log of one job: no secret in it, bounded, and of this job alone."""

from __future__ import annotations

import json
import logging
import tarfile
import threading
from pathlib import Path

import pytest
from support.canary import Canaries

from airpanda.pilot import joblog
from airpanda.pilot.joblog import JobLog, write_archive

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----\n"


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        found = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read().decode() for name, file in found.items() if file is not None}


def test_no_secret_gets_into_it_whoever_said_it(tmp_path: Path, canaries: Canaries) -> None:
    secrets = [canaries.plant(kind) for kind in ("lease", "token", "passphrase")]
    parts = {
        "pilot.log": f"said {secrets[0]} and {secrets[1]}{KEY}",
        "job.json": {"deep": [{"er": secrets[2], "key": KEY}], secrets[0]: 1},
        "payload-tail.log": f"\x1b[2J{KEY[:60]}",
    }
    write_archive(tmp_path / "a.tgz", parts, secrets=[*secrets, ""])
    found = unpacked(tmp_path / "a.tgz")
    assert set(found) == set(parts)
    for text in found.values():
        assert canaries.shown_in(text) == set()
        assert "MIIE" not in text
        assert "\x1b" not in text
    assert found["pilot.log"] == "said [secret removed] and [secret removed][private key removed]\n"
    assert json.loads(found["job.json"])["deep"][0]["er"] == "[secret removed]"


def test_it_is_bounded_and_keeps_the_end(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tgz", {"long": "x" * 10**7 + "the end"}, secrets=[])
    text = unpacked(tmp_path / "a.tgz")["long"]
    assert len(text) < joblog.MAX_PART_BYTES + 100
    assert text.startswith("[the beginning was cut]\nxxx")
    assert text.endswith("the end")
    assert (tmp_path / "a.tgz").stat().st_size < 10_000


def test_it_never_overwrites_anything(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").symlink_to("elsewhere")
    with pytest.raises(FileExistsError):
        write_archive(tmp_path / "a.tgz", {}, secrets=[])
    assert not (tmp_path / "elsewhere").exists()


def test_only_the_jobs_own_threads_are_heard() -> None:
    log = logging.getLogger("airpanda.pilot.test")
    log.setLevel(logging.INFO)

    def say(name: str) -> None:
        thread = threading.Thread(target=lambda: log.info("by %s", name), name=name)
        thread.start()
        thread.join()

    with JobLog("job 7 attempt 1") as heard:
        log.info("by itself")
        for name in ("job 7 attempt 1 heartbeat", "job 7 attempt 11", "job 70 attempt 1", "MainThread", "job 8"):
            say(name)
        log.debug("too fine")
        log.info("long %s", "y" * 10**6)
    log.info("after the end")
    lines = heard.text.splitlines()
    assert [line.split(" INFO ")[1][:40] for line in lines[:2]] == ["by itself", "by job 7 attempt 1 heartbeat"]
    assert len(lines) == 3
    assert len(lines[2]) == joblog.MAX_LINE_CHARS


def test_a_talkative_job_keeps_its_last_lines() -> None:
    log = logging.getLogger("airpanda.pilot.test")
    log.setLevel(logging.INFO)
    with JobLog("job 7 attempt 1") as heard:
        for number in range(3 * joblog.MAX_LINES):
            log.info("line %d", number)
    lines = heard.text.splitlines()
    assert len(lines) == joblog.MAX_LINES
    assert lines[-1].endswith(f"line {3 * joblog.MAX_LINES - 1}")
