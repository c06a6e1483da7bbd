"""A silent pilot is suspected long before its job is taken from it: seen by everybody, written by nobody."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from support.dispatcher import World, job_database, make_settings, template_database, world
from support.postgres import postgres

from airpanda.dispatcher.watchdog import PERIOD_S
from airpanda.jobs.silence import Silence

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
SILENCE = Silence(timedelta(seconds=120), timedelta(seconds=150))


async def fall_silent(world: World, panda_id: int, seconds: float) -> None:
    """As if the pilot had spoken so long ago for the last time, and the watchdog had looked at it as it does."""
    await world.sql(
        "UPDATE panda_job SET lease_expires_at = now() + interval '150 s' - $2::interval,"
        " check_at = now() + interval '120 s' - $2::interval WHERE panda_id = $1",
        panda_id,
        timedelta(seconds=seconds),
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
    assert first == SILENCE.margin


async def test_who_is_suspected_stays_in_sight_and_nobody_else_does(world: World) -> None:
    """Behind the present stand the suspected alone: a look at them never reads who is alive."""
    await world.submit(3)
    silent, late, dead = await (await world.pilot()).acquire(n_jobs=3)
    await fall_silent(world, silent["panda_id"], 121)
    await fall_silent(world, late["panda_id"], 119)
    await fall_silent(world, dead["panda_id"], 151)
    await world.sql("UPDATE panda_job SET check_at = now() - interval '1 s'")
    while await world.services.jobs.move_checks_on():
        pass
    rows = await world.sql("SELECT panda_id FROM panda_job WHERE pilot_id IS NOT NULL AND check_at <= now()")
    assert {row["panda_id"] for row in rows} == {silent["panda_id"], dead["panda_id"]}
    assert await world.services.jobs.expire() == [dead["panda_id"]]
