"""A queue file that has become wrong stops neither leases nor reports, and no job stops the end of others."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.dispatcher import World, job_database, make_settings, running, spec, template_database
from support.postgres import Database, postgres

from airpanda.computing.queues import load_queues
from airpanda.core.errors import ConfigurationError
from airpanda.dispatcher import directory
from airpanda.dispatcher.directory import QueueDirectory
from airpanda.dispatcher.watchdog import one_round

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = pytest.mark.integration
GOOD = """\
[queue]
name = "DEMO"
[slot]
cores = 4
memory_mib = 8000
disk_mib = 8000
walltime_s = 7200
[ce]
kind = "local"
directory = "/var/lib/pilots"
[pilot]
code = "/opt/airpanda/plugins"
dispatcher_url = "https://panda.example.org:25443/panda"
ca_dir = "/etc/grid-security/certificates"
proxy = "/etc/grid-security/pilot.proxy"
[environment]
PATH = "/usr/bin:/bin"
"""
WRONG = GOOD.replace("cores = 4", "corse = 4")
MEMORY = {"source": "pilot", "code": 1212, "diag": "out of memory", "blame": "user"}
SWITCH = {"source": "pilot", "code": 1226, "diag": "the switch failed", "blame": "site"}


@pytest.fixture
def queue_file(tmp_path: Path) -> Path:
    (tmp_path / "queues").mkdir()
    path = tmp_path / "queues/DEMO.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture
async def world(job_database: Database, queue_file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """With queues as its files say at every look."""
    monkeypatch.setattr(directory, "QUEUES_MAX_AGE_S", 0.0)
    settings = make_settings(queue_file.parents[1])
    async with running(job_database, settings, queues=QueueDirectory(queue_file.parent).current) as made:
        yield made


async def test_a_wrong_queue_file_keeps_no_job_with_a_silent_pilot(world: World, queue_file: Path) -> None:
    await world.submit(2)
    pilot = await world.pilot()
    silent, slow = await pilot.acquire(n_jobs=2)
    await pilot.good_report(slow, "starting")
    await world.end_lease(silent["panda_id"])
    await world.sql(
        "UPDATE panda_job SET changed_at = now() - interval '61 min', check_at = now() WHERE panda_id = $1",
        slow["panda_id"],
    )
    queue_file.write_text(WRONG)
    assert await one_round(world.services.upkeep, longest={"starting": timedelta(minutes=60)}, closer=False) == 2
    for job in (silent, slow):
        assert (await world.job(job["panda_id"]))["status"] == "activated"


async def test_a_wrong_queue_file_refuses_no_report(world: World, queue_file: Path) -> None:
    """What a retry rule would raise stays as it was: nobody knows what a job there may ask for."""
    await world.submit(jobs=[spec(f"job-{n}", memory_mib=2000) for n in range(3)])
    pilot = await world.pilot()
    jobs = await pilot.acquire(n_jobs=3)
    failed, handed_back, alive = jobs
    for job in (failed, alive):
        await pilot.good_report(job, "starting", "running")
    queue_file.write_text(WRONG)

    said = [(failed, "failed", [MEMORY]), (handed_back, "activated", [SWITCH]), (alive, "running", [])]
    reports = [_report(*each) for each in said]
    results = (await pilot.post("update_jobs_bulk", {"job_list": reports})).json()
    assert [each["problem"] for each in results] == [None, None, None]
    assert [(await world.job(job["panda_id"]))["status"] for job in jobs] == ["activated", "activated", "running"]

    queue_file.write_text(GOOD)
    again = await pilot.acquire(n_jobs=3, node="wn2.example.org")
    assert {job["panda_id"]: job["spec"]["memory_mib"] for job in again} == {
        failed["panda_id"]: 2000,
        handed_back["panda_id"]: 2000,
    }
    await pilot.good_report(again[0], "starting", "running", "failed", errors=[MEMORY])
    ((memory_mib,),) = await world.sql("SELECT memory_mib FROM panda_job WHERE panda_id = $1", again[0]["panda_id"])
    assert memory_mib == 3000


def _report(job: Mapping[str, Any], status: str, errors: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("attempt_nr", "token")
    return {"job_id": job["panda_id"], "job_status": status, "errors": errors} | {name: job[name] for name in names}


def test_a_wrong_file_is_read_and_logged_no_oftener_than_a_good_one(
    queue_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, readings = [1000.0], 0

    def counted(path: Path) -> Mapping[str, Any]:
        nonlocal readings
        readings += 1
        return load_queues(path)

    monkeypatch.setattr(directory, "load_queues", counted)
    monkeypatch.setattr(directory, "time", SimpleNamespace(monotonic=lambda: now[0]))
    queues = QueueDirectory(queue_file.parent)
    assert set(queues.current()) == {"DEMO"}
    queue_file.write_text(WRONG)
    now[0] += directory.QUEUES_MAX_AGE_S
    for _ in range(3):
        with pytest.raises(ConfigurationError, match=r"DEMO\.toml:4: .*did you mean 'cores'"):
            queues.current()
    assert readings == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    queue_file.write_text(GOOD)
    now[0] += directory.QUEUES_MAX_AGE_S
    assert set(queues.current()) == {"DEMO"}


async def test_a_job_that_cannot_be_taken_holds_up_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.submit(4)
    pilot = await world.pilot()
    jobs = await pilot.acquire(n_jobs=4)
    stuck, *others = [job["panda_id"] for job in jobs]
    await world.sql(
        f"ALTER TABLE panda_job ADD CONSTRAINT stuck CHECK (panda_id <> {stuck} OR status <> 'activated') NOT VALID"
    )
    for panda_id in (stuck, *others[:2]):
        await world.end_lease(panda_id)
    assert sorted(await world.services.upkeep.expire()) == sorted(others[:2])
    await world.sql("UPDATE panda_job SET changed_at = now() - interval '1 h', check_at = now() WHERE pilot_id > 0")
    assert await world.services.upkeep.end_overdue({"sent": timedelta(minutes=30)}) == others[2:]
    assert (await world.job(stuck))["status"] == "sent"
    assert f"panda_id={stuck} cannot be taken" in caplog.text

    await world.sql("ALTER TABLE panda_job DROP CONSTRAINT stuck")
    assert await world.services.upkeep.expire() == [stuck]
