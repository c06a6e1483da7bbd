"""Whoever changes several pilots at once locks them in one order: two of them wait, and never for each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from support.dispatcher import World, job_database, template_database, world
from support.postgres import postgres

from airpanda.db.sql import pilots as sql
from airpanda.messages import BatchCancel, BatchRecord, PilotSeen, PilotsSeen

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
Act = Callable[[World, Sequence[int]], Awaitable[Any]]


async def observe(world: World, pilots: Sequence[int]) -> None:
    """What an element says of them, and then that a person wants them to end."""
    seen = [PilotSeen(pilot_id=each, ce_state="running", asked_to_end=True) for each in pilots]
    await world.services.pilots.observe(PilotsSeen(queue="DEMO", pilots=seen))


async def lose(world: World, pilots: Sequence[int]) -> None:
    """As the watchdog does after their leases have ended."""
    await world.sql(sql.LOST, list(pilots), "lost heartbeat", timedelta(0))


async def cancel(world: World, _pilots: Sequence[int]) -> None:
    await world.services.pilots.cancel(1, BatchCancel(reason="enough"), queues=None, by=None)


async def record(world: World, pilots: Sequence[int]) -> None:
    """Those that were taken first, the others after them."""
    taken = {pilots[0]: "ce-1"}
    await world.services.pilots.record(
        1, BatchRecord(state="submitted", ce="ce", fence=1, handles=taken), queues=None, by=None
    )


PAIRS = [(observe, observe), (lose, lose), (observe, lose), (lose, observe), (observe, cancel), (record, observe)]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda act: act.__name__)
async def test_two_that_want_the_same_pilots_take_turns(world: World, one: Act, other: Act) -> None:
    """Both are kept from the pilot in the middle until each holds what it reaches before that."""
    batch = await world.good("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 3})
    pilots = [each["pilot_id"] for each in batch["pilots"]]
    state = "intended" if record in (one, other) else "started"
    # The rows lie in another order than their numbers.
    for pilot in reversed(pilots):
        await world.sql(
            "UPDATE panda_pilot SET state = $2, last_seen_at = now() - interval '1 s' WHERE pilot_id = $1", pilot, state
        )
    blocker = await asyncpg.connect(world.database.url())
    try:
        async with blocker.transaction():
            await blocker.execute("SELECT FROM panda_pilot WHERE pilot_id = $1 FOR UPDATE", pilots[1])
            running = [
                asyncio.create_task(one(world, pilots)),
                asyncio.create_task(other(world, list(reversed(pilots)))),
            ]
            await world.until_waiting(2)
        await asyncio.wait_for(asyncio.gather(*running), 60)
    finally:
        await blocker.close()
    rows = await world.sql("SELECT state, cancel_asked_at IS NOT NULL AS to_end FROM panda_pilot")
    if lose in (one, other):
        assert {row["state"] for row in rows} == {"lost"}
    if record in (one, other):  # those that were not taken have ended, and nobody observes them any more
        assert sorted(row["state"] for row in rows) == ["failed", "failed", "submitted"]
    elif observe in (one, other):
        assert all(row["to_end"] for row in rows)


async def test_what_a_pilot_says_meanwhile_is_seen_by_who_waited_for_it(world: World) -> None:
    """The watchdog believes a pilot lost; before it gets at the row, the pilot speaks."""
    pilot = (await world.pilot()).pilot_id
    await world.sql("UPDATE panda_pilot SET state = 'started', last_seen_at = now() - interval '1 h'")
    speaking = await asyncpg.connect(world.database.url())
    try:
        async with speaking.transaction():
            await speaking.execute("UPDATE panda_pilot SET last_seen_at = now() WHERE pilot_id = $1", pilot)
            losing = asyncio.create_task(world.sql(sql.LOST, [pilot], "lost heartbeat", timedelta(minutes=10)))
            await world.until_waiting(1)
        await asyncio.wait_for(losing, 60)
    finally:
        await speaking.close()
    ((state,),) = await world.sql("SELECT state FROM panda_pilot")
    assert state == "started"
