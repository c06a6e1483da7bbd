"""A silent pilot is suspected long before its job is taken from it: seen by everybody, written by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.dispatcher import World, job_database, make_settings, running, template_database
from support.postgres import Database, postgres

from airpanda.dispatcher.watchdog import PERIOD_S, watch
from airpanda.jobs.silence import Silence

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = pytest.mark.integration
SILENCE = Silence(timedelta(seconds=120), timedelta(seconds=150))
LONG = Silence(timedelta(hours=2), timedelta(hours=3))
"""Of these tests, so that nothing falls silent, and nothing ends, because the machine is slow."""


@pytest.fixture
async def world(job_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    settings = make_settings(tmp_path, lease=LONG.lease, suspect_after=LONG.suspected)
    async with running(job_database, settings) as made:
        yield made


async def fall_silent(world: World, panda_id: int, minutes: float) -> None:
    """As if the pilot had spoken so long ago for the last time, and the watchdog had looked at it as it does."""
    await world.sql(
        "UPDATE panda_job SET lease_expires_at = now() + interval '3 h' - $2::interval,"
        " check_at = now() + interval '2 h' - $2::interval WHERE panda_id = $1",
        panda_id,
        timedelta(minutes=minutes),
    )


@pytest.mark.parametrize(
    ("left_s", "silent_s"), [(None, None), (150.0, None), (30.1, None), (30.0, 120.0), (0.0, 150.0), (-5.0, 155.0)]
)
def test_what_is_left_of_a_lease_tells_how_long_its_pilot_is_silent(left_s: float | None, silent_s: float) -> None:
    assert SILENCE.of(left_s) == silent_s


def test_from_a_pilots_death_to_the_next_attempt_takes_three_minutes_at_most(tmp_path: Path) -> None:
    """By default: the last heartbeat, the lease, a round of the watchdog and one that is late."""
    settings = make_settings(tmp_path)
    assert settings.heartbeat_interval < settings.suspected_after == timedelta(minutes=2) < settings.lease
    assert settings.lease + 2 * timedelta(seconds=PERIOD_S) < timedelta(minutes=3)


async def test_a_lease_is_looked_at_first_when_its_pilot_could_be_suspected(world: World) -> None:
    await world.submit()
    await (await world.pilot()).acquire()
    ((first,),) = await world.sql("SELECT lease_expires_at - check_at FROM panda_job")
    assert first == LONG.margin


async def test_who_is_suspected_stays_in_sight_and_nobody_else_does(world: World) -> None:
    """Behind the present stand the suspected alone: a look at them never reads who is alive."""
    await world.submit(3)
    silent, late, dead = await (await world.pilot()).acquire(n_jobs=3)
    await fall_silent(world, silent["panda_id"], 150)
    await fall_silent(world, late["panda_id"], 90)
    await fall_silent(world, dead["panda_id"], 200)
    await world.sql("UPDATE panda_job SET check_at = now() - interval '1 s'")
    while await world.services.upkeep.move_checks_on():
        pass
    rows = await world.sql("SELECT panda_id FROM panda_job WHERE pilot_id IS NOT NULL AND check_at <= now()")
    assert {row["panda_id"] for row in rows} == {silent["panda_id"], dead["panda_id"]}
    assert await world.services.upkeep.expire() == [dead["panda_id"]]


async def test_it_is_seen_wherever_a_person_looks_until_the_pilot_speaks_again(world: World) -> None:
    task = await world.submit(3)
    pilot = await world.pilot()
    silent, late = await pilot.acquire(n_jobs=2)
    for job in (silent, late):
        await pilot.good_report(job, "starting", "running")
    await fall_silent(world, silent["panda_id"], 150)
    await fall_silent(world, late["panda_id"], 90)
    before = await world.sql("SELECT * FROM panda_job ORDER BY panda_id")

    for seen in await all_that_is_seen(world, task["task_id"]):
        assert seen == {silent["panda_id"]}
    assert (await world.job(silent["panda_id"]))["silent_s"] == pytest.approx(9000, abs=900)
    for path in ("", "/progress"):
        view = await world.good("GET", f"/v1/task/{task['task_id']}{path}")
        assert (view["suspected"], view["counts"]) == (1, {"running": 2, "activated": 1})
    asked = {"task_ids": [task["task_id"]]}
    assert [each["suspected"] for each in await world.good("POST", "/v1/tasks/progress", asked)] == [1]
    assert [each["suspected"] for each in (await world.good("GET", "/v1/tasks"))["tasks"]] == [1]
    assert "which is suspected" in (await world.good("GET", f"/v1/job/{silent['panda_id']}/why"))["why"]
    assert await world.services.upkeep.count_suspected() == 1
    assert await world.sql("SELECT * FROM panda_job ORDER BY panda_id") == before, "it is derived, nobody writes it"

    await pilot.good_report(silent, "running")
    for seen in await all_that_is_seen(world, task["task_id"]):
        assert seen == set()
    assert (await world.good("GET", f"/v1/task/{task['task_id']}"))["suspected"] == 0
    assert "suspected" not in (await world.good("GET", f"/v1/job/{silent['panda_id']}/why"))["why"]
    assert await world.services.upkeep.count_suspected() == 0


async def all_that_is_seen(world: World, task_id: int) -> list[set[int]]:
    """Which jobs of a panda task are suspected: where one is looked at, and in both lists."""
    listed = await world.good("GET", f"/v1/task/{task_id}/jobs")
    page = (await world.good("GET", "/v1/jobs"))["jobs"]
    one_by_one = [await world.job(job["panda_id"]) for job in listed]
    return [{job["panda_id"] for job in jobs if job["silent_s"] is not None} for jobs in (listed, page, one_by_one)]


async def test_who_waits_has_ended_or_lies_in_the_archive_is_not_suspected(world: World) -> None:
    task = await world.submit(2)
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await fall_silent(world, job["panda_id"], 150)
    await pilot.good_report(job, "starting", "running", "finished")
    await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "enough"})
    assert (await world.good("GET", f"/v1/task/{task['task_id']}/progress"))["suspected"] == 0
    assert await all_that_is_seen(world, task["task_id"]) == [set()] * 3


async def test_operators_have_a_gauge_of_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.submit(2)
    silent, _ = await (await world.pilot()).acquire(n_jobs=2)
    await fall_silent(world, silent["panda_id"], 150)
    told: list[int] = []
    services = world.services
    loop = asyncio.create_task(watch(services.upkeep, services.credentials, period_s=0.01, suspected=told.append))
    try:
        async with asyncio.timeout(60):
            while len(told) < 3:
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()
    assert told[:3] == [1, 1, 1]
    says = [each.getMessage() for each in caplog.records if "suspected" in each.getMessage()]
    assert says == ["1 jobs are with pilots that are suspected: silent for long"], "once, not in each round"
    services.metrics.jobs_suspected.set(told[0])
    assert "airpanda_jobs_suspected 1.0" in (await world.call("GET", "/v1/metrics")).text
