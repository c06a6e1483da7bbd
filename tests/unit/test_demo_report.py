"""The demonstration's verdict: anything that is not as promised is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airpanda_demo.report import JobLine, Launch, Peak, summary, table, verdict, with_launches
from airpanda_demo.switching import Switching

OWNERS = {"robot": (61011, 21), "alice": (61012, 1), "bob": (61013, 1)}
PILOT_UID = 61001
SUDO, SOCKET = Switching("sudo", "lcmaps"), Switching("socket", "own", lacks=("sudo is not installed",))


def line(panda_id: int, owner: str, uid: int) -> JobLine:
    return JobLine(
        panda_id=panda_id, dag_id="d", task_id="t", owner_dn=f"/O=Test Grid/CN={owner}", queue="DEMO",
        status="finished", attempt_nr=1, pilot_id=1, pilot_uid=PILOT_UID, account_uid=uid, account_name=owner,
        identity_switched=True, exit_code=0, wall_s=1.25, cpu_s=1.0, launcher="sudo", mapping="lcmaps",
    )  # fmt: skip


def good() -> list[JobLine]:
    owners = [(owner, uid) for owner, (uid, n) in OWNERS.items() for _ in range(n)]
    return [line(number, owner, uid) for number, (owner, uid) in enumerate(owners, 1)]


def peak(mass: float) -> Peak:
    return Peak("alice", "/p.png", {"mass_gev": mass, "mass_error_gev": 0.04})


def test_all_as_promised() -> None:
    assert verdict(good(), [peak(91.2)], switching=SUDO) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "failed"}, "PandaID 22 is failed"),
        ({"identity_switched": False}, "PandaID 22: the identity was not switched"),
        ({"identity_switched": None}, "PandaID 22: the identity was not switched"),
        ({"account_uid": PILOT_UID}, "PandaID 22 ran as the pilot's account"),
        ({"account_uid": 0}, "PandaID 22 ran as the pilot's account"),
        ({"account_uid": None}, "PandaID 22 ran as the pilot's account"),
        ({"account_uid": 61011}, "owners and accounts do not correspond"),
        ({"launcher": "socket"}, "PandaID 22 ran by socket+lcmaps, not by sudo+lcmaps"),
        ({"mapping": "own"}, "PandaID 22 ran by sudo+own, not by sudo+lcmaps"),
        ({"launcher": None, "mapping": None}, "PandaID 22 ran by None+None"),
        ({"owner_dn": "/O=Test Grid/CN=robot"}, "jobs of 2 owners finished, not of 3"),
    ],
)
def test_one_thing_wrong(change: dict[str, object], said: str) -> None:
    jobs = good()
    jobs[21] = replace(jobs[21], **change)  # type: ignore[arg-type]
    assert any(said in reason for reason in verdict(jobs, [peak(91.2)], switching=SUDO))


def test_too_few_jobs() -> None:
    assert "22 jobs finished, 23 were to finish" in verdict(good()[1:], [peak(91.2)], switching=SUDO)


@pytest.mark.parametrize("mass", [89.9, 92.1, float("nan")])
def test_a_peak_elsewhere(mass: float) -> None:
    assert any("the peak in alice's fit" in reason for reason in verdict(good(), [peak(mass)], switching=SUDO))


def test_no_picture() -> None:
    assert "no analysis left a picture" in verdict(good(), [], switching=SUDO)


def test_without_a_switch_no_job_may_claim_one() -> None:
    jobs = [replace(job, account_uid=PILOT_UID, identity_switched=False) for job in good()]
    assert verdict(jobs, [peak(91.2)], switching=None) == []
    jobs[3] = replace(jobs[3], identity_switched=True)
    assert verdict(jobs, [peak(91.2)], switching=None) == ["PandaID 4 does not say that its identity was not switched"]


def test_the_table_says_no_in_capitals() -> None:
    jobs = [line(1, "alice", 61012), replace(line(2, "bob", PILOT_UID), identity_switched=False, cpu_s=None)]
    text = table(jobs).splitlines()
    assert "alice(61012)" in text[2]
    assert " yes " in text[2]
    assert " NO " in text[3]
    assert text[3].endswith("1.25    -")


def test_the_table_and_the_summary_say_by_what() -> None:
    jobs = [line(1, "alice", 61012), replace(line(2, "bob", 61013), launcher=None, mapping=None)]
    text = table(jobs).splitlines()
    assert " sudo+lcmaps " in text[2]
    assert "sudo" not in text[3]
    assert "of 2 payloads: sudo+lcmaps 1" in summary(jobs, SUDO)
    assert "(sudo is not installed)" in summary(jobs, SOCKET)


@pytest.mark.parametrize("change", [{"dn": "/O=Test Grid/CN=bob"}, {"uid": 61013}])
def test_a_launch_of_somebody_else_is_not_this_jobs(change: dict[str, object]) -> None:
    job = replace(line(4, "alice", 61012), launcher=None, mapping=None)
    launch = Launch("sudo", "lcmaps", job.owner_dn, 61012)
    assert with_launches([job], {"PandaID=4 attempt=1": launch})[0].launcher == "sudo"
    assert with_launches([job], {"PandaID=4 attempt=2": launch})[0].launcher is None
    assert with_launches([job], {"PandaID=4 attempt=1": replace(launch, **change)})[0].launcher is None  # type: ignore[arg-type]
