"""The board of waiting jobs against what the database does behind its back: late commits, other gateways, old rows."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.dispatcher import World, job_database, make_settings, running, spec, template_database, ti, world
from support.postgres import Database, postgres

from airpanda.core.errors import ConfigurationError
from airpanda.db.sql import counts as counts_sql
from airpanda.jobs import board
from airpanda.jobs.board import Boards

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
SITE_ERROR = {"source": "pilot", "code": 1226, "diag": "the switch failed", "blame": "site"}
COPY = "INSERT INTO {0} SELECT (jsonb_populate_record(j, jsonb_build_object({1}))).* FROM {0} j WHERE panda_id = 1"
RECOUNT = """
SELECT abs(lane) AS lane_id, count(*) FILTER (WHERE status = 'activated') AS waiting,
       count(*) FILTER (WHERE pilot_id IS NOT NULL) AS leased
FROM panda_job GROUP BY abs(lane) ORDER BY 1
"""


@contextlib.asynccontextmanager
async def connected(world: World) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(world.database.url())
    try:
        yield connection
    finally:
        await connection.close()


async def lane_counts(world: World) -> list[tuple[int, int, int]]:
    """As counted, which must be as recounted."""
    counted = {tuple(row.values()) for row in await world.sql(counts_sql.LANE_COUNTS)}
    recounted = {tuple(row.values()) for row in await world.sql(RECOUNT)}
    assert counted == {row for row in recounted if row[1:] != (0, 0)}
    return sorted(counted)


async def test_a_job_that_is_committed_late_is_not_passed_over(world: World) -> None:
    await world.submit(6)
    pilot = await world.pilot()
    async with connected(world) as connection:
        transaction = connection.transaction()
        await transaction.start()
        late = "'panda_id', 999, 'activated_xid', pg_current_xact_id()::text::bigint"
        await connection.execute(COPY.format("panda_job", late))
        await connection.execute(COPY.format("panda_job_spec", "'panda_id', 999"))
        await world.submit(6)  # begins later, commits sooner
        for _ in range(12):
            assert len(await pilot.acquire()) == 1
            world.services.jobs._boards.changed()
        assert await pilot.acquire() == []
        await transaction.commit()
    await asyncio.sleep(0.1)
    (job,) = await pilot.acquire()
    assert job["panda_id"] == 999


@pytest.mark.parametrize("writes", [False, True])
async def test_claims_begin_behind_what_a_held_transaction_keeps(world: World, writes: bool) -> None:
    await world.submit(3000)
    pilot = await world.pilot()
    boards = world.services.jobs._boards
    async with connected(world) as holder, holder.transaction(isolation="repeatable_read"):
        await holder.fetch("SELECT pg_current_xact_id()" if writes else "SELECT * FROM panda_ban")
        await world.submit(3000)
        for _ in range(40):
            assert len(await pilot.acquire(n_jobs=100)) == 100
        boards.changed()
        board = await boards.current("DEMO")
        (head,) = board.heads.values()
        assert board.starts[head.number] == head.head > (0, 0)
        async with connected(world) as connection:
            behind = await _blocks(connection, head.number, head.head)
            everything = await _blocks(connection, head.number, (0, 0))
    assert behind < 10
    assert everything > 20 * behind


async def _blocks(connection: Any, lane: int, start: tuple[int, int]) -> int:
    (plan,) = json.loads(
        await connection.fetchval(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT panda_id FROM panda_job WHERE lane = $1"
            " AND status = 'activated' AND (activated_xid, panda_id) >= ($2, $3)"
            " ORDER BY activated_xid, panda_id LIMIT 1",
            lane,
            *start,
        )
    )
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


async def test_another_gateway_sees_what_is_submitted_here(
    world: World, job_database: Database, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    settings = make_settings(tmp_path / "other")
    async with running(job_database, settings) as other:
        pilot = await other.pilot()
        assert await pilot.acquire() == []
        await world.submit()
        await asyncio.sleep(0.3)
        board = await other.services.jobs._boards.current("DEMO")
        assert len(board.heads) == 1


async def test_the_next_look_is_taken_while_claims_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    boards = Boards(world.services.database, clock=lambda: now[0])
    await world.submit()
    first = await boards.current("DEMO")
    now[0] += board.AHEAD_S
    assert await boards.current("DEMO") is first, "young enough"
    now[0] += 0.01
    with monkeypatch.context() as away:
        away.setattr("airpanda.db.sql.lanes.SNAPSHOT", "SELECT FROM no_such_table")
        assert await boards.current("DEMO") is first
        (ahead,) = boards._ahead.values()
        await ahead
        assert await boards.current("DEMO") is first, "a look that failed leaves what there is"
        await asyncio.gather(*boards._ahead.values())
        now[0] += board.MAX_AGE_S
        with pytest.raises(ConfigurationError):
            await boards.current("DEMO")
    second = await boards.current("DEMO")
    now[0] += board.AHEAD_S + 0.01
    assert await boards.current("DEMO") is second, "while the next look is on its way"
    await asyncio.gather(*boards._ahead.values())
    assert await boards.current("DEMO") is not second
    boards.changed()
    now[0] += 0.001
    assert (await boards.current("DEMO")).begun_at >= now[0] - 0.001, "our own changes are seen at once"


async def test_what_does_not_fit_is_never_read(world: World) -> None:
    """However many jobs stand before it that this pilot cannot take."""
    await world.submit(jobs=[spec(f"big-{n}", priority=5000, memory_mib=7000) for n in range(2000)])
    await world.submit(jobs=[spec("small", memory_mib=500)])
    pilot = await world.pilot()
    boards = world.services.jobs._boards
    (job,) = await pilot.acquire(memory=600)
    assert job["spec"]["job_name"] == "small"
    assert await pilot.acquire(memory=600) == []
    assert len((await boards.current("DEMO")).heads) == 1


async def test_jobs_of_many_shapes_are_all_served(world: World) -> None:
    jobs = [spec(f"j{n}", priority=n, memory_mib=1000 + n % 97, cores=1 + n % 3) for n in range(300)]
    await world.submit(jobs=jobs)
    pilot = await world.pilot()
    names = {job["spec"]["job_name"] for _ in range(8) for job in await pilot.acquire(n_jobs=60)}
    assert len(names) == 300


async def test_caps_hold_and_free_places_are_used(world: World) -> None:
    await world.submit(10)
    await world.submit(2, owner="bob")
    await world.sql("INSERT INTO panda_share (kind, name, max_jobs, set_by) VALUES ('owner', 'alice', 3, 'test')")
    pilot = await world.pilot()
    got = await pilot.acquire(n_jobs=20)
    owners = [job["owner_dn"].rsplit("=", 1)[1] for job in got]
    assert sorted(owners) == ["Alice Analyst"] * 3 + ["Bob Analyst"] * 2
    assert await pilot.acquire(n_jobs=20) == []
    mine = next(job for job in got if "Alice" in job["owner_dn"])
    await pilot.good_report(mine, "starting", "running", "finished")
    world.services.jobs._boards.changed()
    assert len(await pilot.acquire(n_jobs=20)) == 1


async def test_a_retry_comes_before_those_that_wait_for_their_first_attempt(world: World) -> None:
    await world.submit(3)
    pilot = await world.pilot()
    (first,) = await pilot.acquire()
    await pilot.good_report(first, "starting", "activated", errors=[SITE_ERROR])
    (again,) = await pilot.acquire()
    assert (again["panda_id"], again["attempt_nr"]) == (first["panda_id"], 2)


async def test_lanes_are_counted_through_everything(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    wanted: dict[str, Any] = {"key": "k", "credential_id": credential}
    await world.submit(8, **wanted)
    pilot = await world.pilot()
    done, back, stays, lost = await pilot.acquire(n_jobs=4)
    await pilot.good_report(done, "starting", "running", "finished")
    await pilot.good_report(back, "starting", "activated", errors=[SITE_ERROR])
    assert [row[1:] for row in await lane_counts(world)] == [(5, 2)]
    await world.end_lease(lost["panda_id"])
    await world.services.upkeep.expire()
    await world.services.upkeep.fold_counts()
    assert [row[1:] for row in await lane_counts(world)] == [(6, 1)]

    other = await world.credential(scope="user", fqans=["/test/Role=pilot"])
    await world.submit(8, key="k", credential_id=other["credential_id"], ti=ti(2))
    assert [row[1:] for row in await lane_counts(world)] == [(0, 1), (6, 0)]
    assert len(await pilot.acquire(n_jobs=10)) == 6
    await pilot.good_report(stays, "starting", "running", "finished")
    assert [row[1:] for row in await lane_counts(world)] == [(0, 6)]


async def test_folds_and_counts_at_once_agree_at_any_moment(world: World) -> None:
    task = await world.submit(200)
    pilots = await world.pilots(4)
    going = True

    async def work(pilot: Any) -> None:
        while jobs := await pilot.acquire(n_jobs=5):
            for job in jobs:
                await pilot.good_report(job, "running", "finished")

    async def fold() -> None:
        while going:
            await world.services.upkeep.fold_counts()

    async def look() -> None:
        while going:
            progress = await world.good("GET", f"/v1/task/{task['task_id']}/progress")
            assert sum(progress["counts"].values()) == 200
            assert min(progress["counts"].values()) > 0

    others = [asyncio.create_task(each()) for each in (fold, fold, look)]
    await asyncio.gather(*map(work, pilots))
    going = False
    await asyncio.gather(*others)
    await lane_counts(world)
    assert (await world.good("GET", f"/v1/task/{task['task_id']}/progress"))["counts"] == {"finished": 200}


async def test_a_cap_holds_at_all_queues_of_a_process_at_once(world: World) -> None:
    await world.submit(2)
    await world.submit(2, queue="OTHER")
    await world.sql("INSERT INTO panda_share (kind, name, max_jobs, set_by) VALUES ('owner', 'alice', 1, 'test')")
    here, there = await world.pilot(), await world.pilot("OTHER")
    boards = world.services.jobs._boards
    boards.changed()
    await asyncio.gather(boards.current("DEMO"), boards.current("OTHER"))
    assert len([*await here.acquire(), *await there.acquire()]) == 1
