"""Claims and reports of several pilots in one statement: each is answered for itself."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from support.dispatcher import PILOT_DN, Pilot, World, job_database, spec, template_database, world
from support.postgres import postgres

from airpanda.core.errors import ConfigurationError
from airpanda.db.sql import claims as claims_sql
from airpanda.db.sql import jobs as jobs_sql
from airpanda.db.sql import reports as reports_sql
from airpanda.jobs import reports, upkeep

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
OFFER = {"site_name": "DEMO", "node": "n", "cores": 4, "memory": 8000, "disk_space": 8000, "remaining_time": 7200}


async def started(world: World, n: int) -> list[Pilot]:
    pilots = await world.pilots(n)
    await world.sql("UPDATE panda_pilot SET state = 'started'")
    return pilots


async def asked_together(pilots: list[Pilot], **changes: Any) -> list[list[dict[str, Any]]]:
    return await asyncio.gather(*(pilot.acquire(**changes) for pilot in pilots))


async def statements(world: World, table: str) -> int:
    """How many transactions have written this table; the writers' numbers say so."""
    rows = await world.sql(f"SELECT count(DISTINCT xmin::text) AS n FROM {table}")
    return int(rows[0]["n"])


async def test_claims_that_come_together_are_few_transactions(world: World) -> None:
    await world.submit(40)
    pilots = await started(world, 40)
    await pilots[0].acquire()  # the board is read once before
    found = await asked_together(pilots[1:])
    ids = [job["panda_id"] for jobs in found for job in jobs]
    assert len(ids) == len(set(ids)) == 39
    assert await statements(world, "panda_attempt") <= 10
    for pilot, jobs in zip(pilots[1:], found, strict=True):  # each token opens its own job, and no other
        await pilot.good_report(jobs[0], "starting")
    stolen = await pilots[1].report(found[1][0], "running")
    assert stolen.status_code == 409


async def test_who_is_not_served_takes_nothing_from_the_others(world: World) -> None:
    await world.submit(3)
    pilots = await started(world, 5)
    await world.sql("UPDATE panda_pilot SET cancel_asked_at = now() WHERE pilot_id = $1", pilots[1].pilot_id)
    await world.sql("UPDATE panda_pilot SET state = 'finished' WHERE pilot_id = $1", pilots[3].pilot_id)
    found = await asked_together(pilots)
    assert [len(jobs) for jobs in found] == [1, 0, 1, 0, 1]


async def test_a_pilot_of_a_bad_node_takes_nothing(world: World) -> None:
    await world.submit(2)
    pilots = await started(world, 2)
    await world.sql("INSERT INTO panda_bad_node VALUES ('DEMO', 'wn-bad', now() + interval '1 min', 'drill')")
    good, bad = await asyncio.gather(pilots[0].acquire(), pilots[1].acquire(node="wn-bad"))
    assert (len(good), bad) == (1, [])


async def test_a_job_that_avoids_a_node_waits_for_another(world: World) -> None:
    await world.submit(1)
    pilots = await started(world, 2)
    await world.sql("UPDATE panda_job SET avoid_node = 'wn-a', avoid_until = now() + interval '1 min'")
    first, second = await asyncio.gather(pilots[0].acquire(node="wn-a"), pilots[1].acquire(node="wn-b"))
    assert first == []
    if not second:  # both were in one statement: nobody of it gets the job, the next one does
        await asyncio.sleep(0.3)
        second = await pilots[1].acquire(node="wn-b")
    assert len(second) == 1


async def test_a_first_claim_starts_the_pilot(world: World) -> None:
    await world.submit(1)
    (pilot,) = await world.pilots(1)
    assert len(await pilot.acquire()) == 1
    (row,) = await world.sql("SELECT state, node, dn, last_seen_at = last_job_at AS busy FROM panda_pilot")
    assert tuple(row) == ("started", "wn1.example.org", PILOT_DN, True)


async def test_a_locked_job_keeps_nobody_elses_heartbeat_waiting(world: World) -> None:
    await world.submit(2)
    pilots = await started(world, 2)
    (mine,), (other,) = await asked_together(pilots)
    for pilot, job in zip(pilots, (mine, other), strict=True):
        await pilot.good_report(job, "running")
    connection = await asyncpg.connect(world.database.url())
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM panda_job WHERE panda_id = $1 FOR UPDATE", other["panda_id"])
            late = asyncio.create_task(pilots[1].report(other, "running"))
            async with asyncio.timeout(30):
                await pilots[0].good_report(mine, "running")
            assert not late.done()
        assert (await late).status_code == 200
    finally:
        await connection.close()


async def test_good_ends_of_many_pilots_are_counted_for_each(world: World) -> None:
    await world.submit(12)
    pilots = await started(world, 12)
    found = await asked_together(pilots)
    await asyncio.gather(
        *(p.good_report(jobs[0], "running", "finished") for p, jobs in zip(pilots, found, strict=True))
    )
    await world.services.jobs.settle()
    rows = await world.sql("SELECT jobs_done, jobs_failed FROM panda_pilot")
    assert [tuple(row) for row in rows] == [(1, 0)] * 12
    rows = await world.sql("SELECT status, ended_at IS NOT NULL AS ended FROM panda_attempt")
    assert {tuple(row) for row in rows} == {("finished", True)}


async def test_a_pilot_whose_row_is_held_is_counted_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "SETTLE_AFTER_S", 3600)
    await world.submit(2)
    pilots = await started(world, 2)
    found = [jobs[0] for jobs in await asked_together(pilots)]
    for pilot, job in zip(pilots, found, strict=True):
        await pilot.good_report(job, "running")
    connection = await asyncpg.connect(world.database.url())
    try:
        async with connection.transaction():
            held = "SELECT FROM panda_pilot WHERE pilot_id = $1 FOR UPDATE"
            await connection.execute(held, pilots[1].pilot_id)
            ends = await asyncio.gather(*(p.report(job, "finished") for p, job in zip(pilots, found, strict=True)))
            assert [each.status_code for each in ends] == [200, 200], "no end waits for its count"
            counted = asyncio.create_task(world.services.jobs.settle())
            await until_counted(world, 1)
            assert not counted.done()
    finally:
        await connection.close()
    await counted
    await until_counted(world, 2)


async def test_good_ends_are_counted_a_little_later_by_themselves(world: World) -> None:
    await world.submit(1)
    (pilot,) = await started(world, 1)
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "running", "finished")
    await until_counted(world, 1)


async def test_what_could_not_be_counted_is_counted_with_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.submit(2)
    (pilot,) = await started(world, 1)
    first, second = await pilot.acquire(n_jobs=2)
    monkeypatch.setattr(reports, "SETTLE_AFTER_S", 3600)
    with monkeypatch.context() as away:
        away.setattr("airpanda.db.sql.reports.COUNT_ENDS", "SELECT 1 / 0 FROM no_such_table")
        await pilot.good_report(first, "running", "finished")
        with pytest.raises(ConfigurationError):
            await world.services.jobs.settle()
    await pilot.good_report(second, "running", "finished")
    await world.services.jobs.settle()
    (row,) = await world.sql("SELECT jobs_done, jobs_failed FROM panda_pilot")
    assert tuple(row) == (2, 0)


async def until_counted(world: World, n: int) -> None:
    async with asyncio.timeout(60):
        while (await world.sql("SELECT count(*) AS n FROM panda_pilot WHERE jobs_done = 1"))[0]["n"] != n:
            await asyncio.sleep(0.02)


async def test_a_report_of_another_attempt_is_answered_alone(world: World) -> None:
    await world.submit(3)
    pilots = await started(world, 3)
    found = [jobs[0] for jobs in await asked_together(pilots)]
    wrong = found[1] | {"token": "x" * 43}
    answers = await asyncio.gather(
        pilots[0].report(found[0], "running"), pilots[1].report(wrong, "running"), pilots[2].report(found[2], "running")
    )
    assert [each.status_code for each in answers] == [200, 409, 200]


async def test_a_new_attempt_keeps_nobody_elses_report_waiting(world: World) -> None:
    """Of another panda task: its report stands in one statement with one that a retry is about to fence off."""
    killed, well = await world.submit(1), await world.submit(1)
    pilots = await started(world, 2)
    found = {jobs[0]["panda_id"]: (p, jobs[0]) for p, jobs in zip(pilots, await asked_together(pilots), strict=True)}
    for pilot, job in found.values():
        await pilot.good_report(job, "starting")
    await world.good("POST", f"/v1/task/{killed['task_id']}/kill", {"reason": "drill"})
    first = killed["first_panda_id"]
    connection = await asyncpg.connect(world.database.url())
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(jobs_sql.CLOSE_KILLED_ATTEMPTS, first, first)  # as where new attempts are opened
        late = asyncio.create_task(found[first][0].report(found[first][1], "running"))
        await asyncio.sleep(0.3)
        other, job = found[well["first_panda_id"]]
        try:
            async with asyncio.timeout(30):
                await other.good_report(job, "running")
        finally:
            await transaction.rollback()
            await late
    finally:
        await connection.close()


async def test_whose_first_ask_was_skipped_still_hears_of_the_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SKIP LOCKED is asked row by row: a pilot's row may be let go between its first and its second token."""
    await world.submit(2)
    (pilot,) = await started(world, 1)
    skip = "    FOR NO KEY UPDATE OF p SKIP LOCKED"
    assert skip in claims_sql.ACQUIRE
    monkeypatch.setattr(claims_sql, "ACQUIRE", claims_sql.ACQUIRE.replace(skip, f"      AND a.nr <> 1\n{skip}"))
    taken = await pilot.acquire(n_jobs=2)
    rows = await world.sql("SELECT panda_id FROM panda_job WHERE status = 'sent'")
    assert {job["panda_id"] for job in taken} == {row["panda_id"] for row in rows} != set(), "what was leased is told"


async def test_counts_are_folded_early_where_much_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "MANY_CHANGES", 6)
    task = await world.submit(5)
    fresh = "SELECT count(*) AS n FROM panda_task_delta"
    await world.services.upkeep.keep_counts_short()
    assert (await world.sql(fresh))[0]["n"] == 1
    await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "drill"})
    before = (await world.good("GET", f"/v1/task/{task['task_id']}/progress"))["counts"]
    await world.services.upkeep.keep_counts_short()
    assert (await world.sql(fresh))[0]["n"] == 0
    assert (await world.good("GET", f"/v1/task/{task['task_id']}/progress"))["counts"] == before == {"cancelled": 5}


@pytest.mark.parametrize(
    "statement", [claims_sql.ACQUIRE, reports_sql.HEARTBEATS, reports_sql.MOVES, reports_sql.COUNT_ENDS]
)
def test_nobody_waits_for_a_row_while_holding_others(statement: str) -> None:
    assert statement.count("SKIP LOCKED") == statement.count("FOR UPDATE") + statement.count("FOR NO KEY UPDATE") > 0


async def away(world: World, table: str, condition: str) -> None:
    """Changes of this table for which the condition holds find the database as if it were about to stop."""
    await world.sql(
        "CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '57P01'; END $$"
    )
    await world.sql(
        f"CREATE TRIGGER away BEFORE UPDATE ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION away()"
    )


async def test_who_asks_for_several_jobs_gets_those_taken_before_the_database_went_away(world: World) -> None:
    task = await world.submit(jobs=[spec("first", priority=2000), spec("second", priority=1000)])
    first, second = task["first_panda_id"], task["first_panda_id"] + 1
    pilot = await world.pilot()
    await away(world, "panda_job", f"NEW.panda_id = {second} AND NEW.status = 'sent'")
    assert [job["panda_id"] for job in await pilot.acquire(n_jobs=2)] == [first]
    nothing = await pilot.post("acquire_jobs", OFFER)
    assert (nothing.status_code, nothing.json()["code"]) == (503, "service")
    await world.sql("DROP TRIGGER away ON panda_job")
    assert [job["panda_id"] for job in await pilot.acquire(n_jobs=2)] == [second]


async def test_a_passphrase_that_opens_with_no_key_takes_no_job_of_the_same_claim_with_it(world: World) -> None:
    """Also where the database goes away before that credential is out of use: its job's lease runs out then."""
    lost, good = [(await world.credential(scope="task"))["credential_id"] for _ in range(2)]
    broken = (await world.submit(credential_id=lost))["first_panda_id"]
    whole = (await world.submit(credential_id=good))["first_panda_id"]
    await world.sql("UPDATE panda_credential SET passphrase = 'nonsense' WHERE credential_id = $1", lost)
    await away(world, "panda_credential", f"NEW.credential_id = {lost}")
    pilot = await world.pilot()
    assert [job["panda_id"] for job in await pilot.acquire(n_jobs=2)] == [whole]
    assert (await world.job(broken))["status"] == "sent"
    await world.sql("DROP TRIGGER away ON panda_credential")
    await world.end_lease(broken)
    assert await world.services.upkeep.expire() == [broken]
