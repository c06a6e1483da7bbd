"""Nodes that turn bad under a pilot: clocks that jump, names that do not resolve, its own disk that is full."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from support.fake_dispatcher import FakeDispatcher, fake_dispatcher, make_job
from support.need import need_root
from support.pilot_rig import Rig
from support.pki import Pki

from airpanda.core import clock
from airpanda.pilot import client, errors, job
from airpanda.pilot.credentials import from_myproxy
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with fake_dispatcher() as fake:
        yield Rig(fake, tmp_path)
        assert fake.errors == [], "the pilot sent what the dispatcher does not accept"


def codes(fake: FakeDispatcher) -> list[tuple[int, str]]:
    return [(error.code, str(error.blame)) for error in fake.final.errors]


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(days=-400)], ids=["forward", "back"])
def test_a_clock_that_jumps_while_a_payload_runs_changes_nothing(
    rig: Rig, jump: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the lease nor the proxy nor a limit seems to end; times are measured by what does not jump."""
    jumped = timedelta(0)

    def now() -> datetime:
        return clock.utcnow() + jumped

    for module in (client, job):
        monkeypatch.setattr(module, "utcnow", now)
    rig.fake.lease_s = 2.0
    rig.fake.jobs = [make_job(argv=["sh", "-c", "sleep 4; echo survived"], walltime_s=60)]
    thread = rig.start()
    rig.fake.wait_for("running")
    time.sleep(0.5)
    jumped = jump
    thread.join(30)
    assert rig.fake.statuses == ["starting", "running", "finished"]
    assert rig.fake.final.errors == []
    assert rig.fake.final.use is not None
    assert 3 < rig.fake.final.use.wall_s < 20
    at = [sample.at_s for report in rig.fake.reports for sample in report.samples]
    assert at == sorted(at)
    assert max(at) < 20


def test_a_dispatcher_whose_name_does_not_resolve_is_told_in_words(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airpanda.pilot.agent._STATUS_PATIENCE_S", 0.5)
    rig.options["dispatcher_url"] = "https://nosuch.invalid:8443"
    rig.options["ca_dir"] = "/etc/ssl/certs"
    rig.options["proxy"] = None
    assert rig.run() == errors.EXIT_COMMUNICATION
    assert "the dispatcher cannot be reached" in caplog.text
    assert "Name or service not known" in caplog.text or "name resolution" in caplog.text


def test_a_myproxy_whose_name_does_not_resolve_sends_the_job_back(rig: Rig) -> None:
    own, now = rig.root / "own", clock.utcnow()
    eec = ProxyCredential.from_files(*Pki(rig.root / "pki").user("pilot"))
    create_proxy(eec, lifetime=timedelta(hours=1), now=now).write(own)
    wanted = make_job()
    pointer = wanted.credential.model_copy(update={"server": "nosuch.invalid:7512"})
    rig.retrieve = from_myproxy(str(own), "/etc/ssl/certs", timeout=timedelta(seconds=5))
    rig.fake.jobs = [wanted.model_copy(update={"credential": pointer})]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "activated"]
    assert codes(rig.fake) == [(1163, "system")]
    assert "nosuch.invalid" in rig.fake.final.errors[0].diag
    assert rig.switcher.launched == []


@pytest.fixture
def full_workdir(rig: Rig) -> Iterator[Rig]:
    """The pilot's own directory on a file system of 256 kB, nearly full."""
    need_root()
    rig.workdir.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", rig.workdir], check=True)
    try:
        (rig.workdir / "ballast").write_bytes(bytes(240 * 1024))
        yield rig
    finally:
        subprocess.run(["umount", "-l", rig.workdir], check=True)


@pytest.mark.root
def test_a_full_disk_under_the_pilots_own_directory_is_no_jobs_fault(full_workdir: Rig) -> None:
    """Before the payload: the job goes back, and the node is benched, since nothing better comes of asking again."""
    rig = full_workdir
    rig.fake.jobs = [make_job(7, scripts={"big.sh": "x" * 100_000}), make_job(8)]
    assert rig.run() == errors.EXIT_BENCHED
    assert rig.fake.statuses == ["starting", "activated"]
    assert codes(rig.fake) == [(1098, "site")]
    assert "the pilot's own files" in rig.fake.final.errors[0].diag
    assert len(rig.fake.jobs) == 1
    assert [path.name for path in rig.workdir.iterdir()] == ["ballast"]
    assert list(rig.scratch.iterdir()) == []


@pytest.mark.root
def test_a_disk_that_fills_while_the_payload_prints_stops_nobody(full_workdir: Rig) -> None:
    rig = full_workdir
    rig.fake.jobs = [make_job(argv=["sh", "-c", "head -c 1000000 /dev/zero; echo; echo well done"])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "finished"]
    kept = rig.fake.files["7/1/payload.log"]
    assert 0 < len(kept) < 32 * 1024
    assert kept.endswith(b" are kept]\n"), "that it is not whole is more telling than its last lines"
    assert rig.fake.final.errors == []
    assert [path.name for path in rig.workdir.iterdir()] == ["ballast"]


def test_a_directory_that_has_gone_is_told(rig: Rig) -> None:
    rig.fake.jobs = [make_job()]
    good = rig.retrieve

    def vanish(*arguments: object) -> object:
        for path in rig.workdir.iterdir():
            os.rename(path, rig.root / "away")
        return good(*arguments)  # type: ignore[arg-type]

    rig.retrieve = vanish  # type: ignore[assignment]
    rig.run()
    assert rig.fake.statuses == ["starting", "failed"]
    assert codes(rig.fake) == [(1301, "system")]
    assert "the pilot's own files: FileNotFoundError" in rig.fake.final.errors[0].diag
