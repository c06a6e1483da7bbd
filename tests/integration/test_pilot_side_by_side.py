"""Payloads side by side in one pilot: as many as the slot has room for, each with its own end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_dispatcher import fake_dispatcher, make_job
from support.pilot_rig import Rig

from airpanda import messages as m
from airpanda.core.errors import CredentialError
from airpanda.pilot import errors, probe
from airpanda.pilot.config import Slot

BOB = "/O=Test Grid/CN=Bob Analyst"


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(probe, "usable_cores", lambda: 8)
    with fake_dispatcher() as fake:
        rig = Rig(fake, tmp_path)
        rig.options["slot"] = Slot(cores=8, memory_mib=800, disk_mib=800, walltime_s=3600)
        yield rig
        assert fake.errors == [], "the pilot sent what the dispatcher does not accept"


def meet(rig: Rig, n: int) -> list[str]:
    """A payload that ends well only when n of them run at the same time."""
    place = rig.root / "meeting"
    place.mkdir(mode=0o777, exist_ok=True)
    script = f'touch "{place}/$PandaID"; i=0; while [ $(ls "{place}" | wc -l) -lt {n} ]; do sleep 0.05; i=$((i+1)); '
    return ["sh", "-c", script + "[ $i -lt 300 ] || exit 1; done"]


def running_at_once(rig: Rig) -> int:
    """The most jobs that were begun and not yet ended, by the order of the reports."""
    alive, most = set(), 0
    for report in rig.fake.reports:
        if report.job_status in ("finished", "failed", "cancelled", "activated"):
            alive.discard(report.job_id)
        else:
            alive.add(report.job_id)
        most = max(most, len(alive))
    return most


def test_eight_run_at_once_and_leave_nothing(rig: Rig) -> None:
    rig.fake.jobs = [make_job(i, argv=meet(rig, 8), memory_mib=100) for i in range(8)]
    assert rig.run() == errors.EXIT_OK
    finals = {report.job_id: report.job_status for report in rig.fake.reports}
    assert finals == dict.fromkeys(range(8), "finished")
    offers = [(offer.cores, offer.memory) for offer in rig.fake.offers]
    assert offers[:8] == [(8 - i, 800 - 100 * i) for i in range(8)], "each offer is what the others leave"
    assert (8, 800) in offers[8:], "what has ended is on offer again"
    assert rig.leftovers() == []


@pytest.mark.parametrize(
    ("asked", "most"), [({"cores": 4}, 2), ({"memory_mib": 300}, 2), ({"disk_mib": 800}, 1), ({"cores": 8}, 1)]
)
def test_the_slot_is_never_promised_twice(rig: Rig, asked: dict[str, int], most: int) -> None:
    spec = {"argv": ["sleep", "0.5"], "memory_mib": 100} | asked

    rig.fake.jobs = [make_job(i, **spec) for i in range(4)]
    post = rig.fake.post

    def careful(path: str, body: bytes) -> tuple[int, object]:
        """A dispatcher that keeps to the offer."""
        if path != "/v1/pilot/acquire_jobs":
            return post(path, body)
        offer, jobs = m.PilotOffer.model_validate_json(body), rig.fake.jobs
        first = jobs[0].spec if jobs else None
        fits = first and first.cores <= offer.cores and first.memory_mib <= offer.memory
        if first and fits and first.disk_mib <= offer.disk_space:
            return post(path, body)
        return 200, m.AcquireReply(jobs=[], wait_s=0.1)

    rig.fake.post = careful  # type: ignore[method-assign]
    assert rig.run() == errors.EXIT_OK
    assert running_at_once(rig) == most
    assert {r.job_status for r in rig.fake.reports if r.job_id == 3} >= {"finished"}


def test_the_sites_word_bounds_them(rig: Rig) -> None:
    rig.options["max_payloads"] = 3
    rig.fake.jobs = [make_job(i, argv=["sleep", "0.5"], memory_mib=10) for i in range(9)]
    assert rig.run() == errors.EXIT_OK
    assert running_at_once(rig) == 3


def test_one_bad_end_is_nobody_elses(rig: Rig) -> None:
    good = meet(rig, 3)
    rig.fake.jobs = [
        make_job(1, argv=good, memory_mib=100),
        make_job(2, argv=["sh", "-c", "exit 3"], memory_mib=100),
        make_job(3, argv=good, memory_mib=100),
        make_job(4, argv=["no-such-program-here"], memory_mib=100),
        make_job(5, argv=good, memory_mib=100),
    ]
    assert rig.run() == errors.EXIT_OK
    finals = {report.job_id: report.job_status for report in rig.fake.reports}
    assert finals == {1: "finished", 2: "failed", 3: "finished", 4: "failed", 5: "finished"}


def test_a_signal_ends_all_of_them_with_reports(rig: Rig) -> None:
    rig.fake.jobs = [make_job(i, argv=["sleep", "60"], memory_mib=100) for i in range(4)]
    thread = rig.start()
    end = time.monotonic() + 60
    while sum(report.job_status == "running" for report in list(rig.fake.reports)) < 4:
        assert time.monotonic() < end
        time.sleep(0.02)
    rig.stop._take(signal.SIGTERM, None)
    thread.join(60)
    finals = {report.job_id: [error.code for error in report.errors] for report in rig.fake.reports}
    assert finals == {number: [1201] for number in range(4)}
    assert rig.code == 128 + signal.SIGTERM
    assert rig.leftovers() == []


def test_a_drained_pilot_lets_them_end(rig: Rig) -> None:
    rig.fake.jobs = [make_job(i, argv=["sleep", "1"], memory_mib=100) for i in range(3)]
    thread = rig.start()
    rig.fake.wait_for("running")
    rig.fake.command = "drain"
    thread.join(60)
    asked = len(rig.fake.offers)
    rig.fake.jobs.append(make_job(9))
    assert {report.job_status for report in rig.fake.reports if report.errors} == set()
    assert rig.fake.workers[-1].reason == "drained by the dispatcher"
    assert len(rig.fake.offers) == asked


def test_a_benched_node_lets_the_others_end(rig: Rig) -> None:
    good = rig.retrieve

    def retrieve(pointer: object, lifetime: object) -> object:
        if getattr(pointer, "owner_dn", "") == BOB:
            raise CredentialError("the pilot's has expired")
        return good(pointer, lifetime)  # type: ignore[arg-type]

    rig.retrieve = retrieve
    rig.options["bench_sleep_s"] = 0.1
    rig.fake.jobs = [make_job(1, argv=["sleep", "1"], memory_mib=100), make_job(2, owner_dn=BOB, memory_mib=100)]
    assert rig.run() == errors.EXIT_BENCHED
    finals = {report.job_id: report.job_status for report in rig.fake.reports}
    assert finals == {1: "finished", 2: "activated"}


def test_a_pilot_asks_once_more_when_its_idle_time_is_over(rig: Rig) -> None:
    """Whatever the dispatcher told it to wait: work that came meanwhile is not left for nobody."""
    post = rig.fake.post

    def slow(path: str, body: bytes) -> tuple[int, object]:
        status, answer = post(path, body)
        return status, answer.model_copy(update={"wait_s": 50.0}) if path.endswith("acquire_jobs") else answer

    rig.fake.post = slow  # type: ignore[method-assign]
    rig.options["idle_limit_s"] = 2.0
    thread = rig.start()
    end = time.monotonic() + 60
    while not rig.fake.offers:
        assert time.monotonic() < end
        time.sleep(0.01)
    rig.fake.jobs = [make_job(5, memory_mib=100)]
    thread.join(60)
    assert rig.fake.statuses == ["starting", "running", "finished"]


def test_an_unreachable_dispatcher_ends_an_idle_pilot_and_says_so(rig: Rig) -> None:
    rig.options["idle_limit_s"] = 3.0
    thread = rig.start()
    end = time.monotonic() + 60
    while not rig.fake.offers:
        assert time.monotonic() < end
        time.sleep(0.01)
    rig.fake.down = True
    thread.join(60)
    assert rig.code == errors.EXIT_COMMUNICATION


def test_what_the_queue_promises_is_offered(rig: Rig) -> None:
    rig.options.update(features=("cvmfs-atlas", "gpu"), idle_limit_s=0.5)
    assert rig.run() == errors.EXIT_OK
    assert {tuple(offer.features[:2]) for offer in rig.fake.offers} == {("cvmfs-atlas", "gpu")}
