"""The job store on a real PostgreSQL: claims, leases, fencing, retries, kills, counts."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import asyncpg
import pytest
from support.dispatcher import ALICE_DN, PILOT_DN, World, job_database, spec, template_database, ti, world
from support.postgres import postgres

from airpanda.core.clock import to_wire, utcnow
from airpanda.db.states import may_follow
from airpanda.messages import JobStatus, PilotOffer

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
SITE_ERROR = {"source": "pilot", "code": 1226, "diag": "the switch failed", "blame": "site"}
USER_ERROR = {"source": "exe", "code": 1, "diag": "segfault", "blame": "user"}


async def recount(world: World, task_id: int) -> dict[str, int]:
    rows = await world.sql("SELECT status, count(*) AS n FROM panda_job WHERE task_id = $1 GROUP BY status", task_id)
    return {row["status"]: row["n"] for row in rows}


async def counts(world: World, task_id: int) -> dict[str, int]:
    return (await world.good("GET", f"/v1/task/{task_id}/progress"))["counts"]


async def attempts(world: World, panda_id: int) -> list[dict[str, Any]]:
    return (await world.job(panda_id))["attempts"]


# --- what the database refuses -----------------------------------------------------------------------------------


async def test_the_database_enforces_exactly_the_transition_table(world: World) -> None:
    task = await world.submit()
    job = task["first_panda_id"]
    connection = await asyncpg.connect(world.database.url())
    try:
        for old in JobStatus:
            for new in JobStatus:
                if old is new:
                    continue
                for step in (0, 1, 2, -1):
                    allowed = step in (0, 1) and may_follow(old, new, next_attempt=step == 1)
                    assert await _accepts(connection, job, old, new, step) is allowed, (old, new, step)
    finally:
        await connection.close()


async def _accepts(connection: Any, job: int, old: JobStatus, new: JobStatus, step: int) -> bool:
    transaction = connection.transaction()
    await transaction.start()
    try:
        # The old status is put there behind the trigger's back; the new one has to pass it.
        await connection.execute("ALTER TABLE panda_job DISABLE TRIGGER panda_job_changed")
        await connection.execute("UPDATE panda_job SET status = $2 WHERE panda_id = $1", job, old.value)
        await connection.execute("ALTER TABLE panda_job ENABLE TRIGGER panda_job_changed")
        await connection.execute(
            "UPDATE panda_job SET status = $2, attempt_nr = attempt_nr + $3 WHERE panda_id = $1", job, new.value, step
        )
    except asyncpg.PostgresError as error:
        if error.sqlstate != "PA001":
            raise
        return False
    finally:
        await transaction.rollback()
    return True


async def test_a_job_cannot_enter_as_running(world: World) -> None:
    await world.submit()
    with pytest.raises(asyncpg.PostgresError, match="enters the store"):
        await world.sql(
            "INSERT INTO panda_job (panda_id, task_id, credential_id, queue, lane, status, priority, max_attempt,"
            " cores, memory_mib, disk_mib, walltime_s, changed_by)"
            " VALUES (999, 1, 1, 'DEMO', 1, 'running', 1, 1, 1, 1, 1, 1, 'x')"
        )


@pytest.mark.parametrize("table", ["panda_credential_audit", "panda_job_status_log"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET actor = 'nobody'", "DELETE FROM {}", "TRUNCATE {}"])
async def test_logs_only_grow(world: World, table: str, statement: str) -> None:
    await world.submit()
    before = await world.sql(f"SELECT * FROM {table}")
    assert before
    with pytest.raises(asyncpg.PostgresError, match="only grows"):
        await world.sql(statement.format(table))
    assert await world.sql(f"SELECT * FROM {table}") == before


# --- claims ------------------------------------------------------------------------------------------------------


async def test_32_claimers_and_a_watchdog_never_share_an_attempt(world: World) -> None:
    task = await world.submit(400)
    pilots = await world.pilots(32)
    await world.sql("UPDATE panda_pilot SET state = 'started'")
    offer = PilotOffer(site_name="DEMO", node="wn", cores=4, memory=8000, disk_space=8000, remaining_time=7200)
    chance = random.Random(1)
    taken: list[tuple[int, int]] = []

    async def claim(pilot_id: int) -> None:
        while jobs := await world.services.jobs.acquire(
            offer.model_copy(update={"n_jobs": chance.randint(1, 3)}),
            pilot_id=pilot_id,
            queue="DEMO",
            pilot_dn=PILOT_DN,
        ):
            taken.extend((job.panda_id, job.attempt_nr) for job in jobs)
            if chance.random() < 0.2:  # this pilot dies with what it holds
                await world.sql(
                    "UPDATE panda_job SET lease_expires_at = now() - interval '1 s', check_at = now() - interval '1 s'"
                    " WHERE pilot_id = $1",
                    pilot_id,
                )
                return

    async def watch() -> None:
        for _ in range(30):
            await world.services.upkeep.expire()
            await world.services.upkeep.fold_counts()

    await asyncio.gather(watch(), watch(), *(claim(pilot.pilot_id) for pilot in pilots))
    await world.services.upkeep.expire()
    while jobs := await world.services.jobs.acquire(
        offer.model_copy(update={"n_jobs": 100}), pilot_id=pilots[0].pilot_id, queue="DEMO", pilot_dn=PILOT_DN
    ):
        taken.extend((job.panda_id, job.attempt_nr) for job in jobs)

    assert len(taken) == len(set(taken))
    assert {panda_id for panda_id, _ in taken} == set(range(task["first_panda_id"], task["first_panda_id"] + 400))
    assert await counts(world, task["task_id"]) == {"sent": 400} == await recount(world, task["task_id"])
    released = await world.sql(
        "SELECT panda_id, attempt_nr, pilot_id FROM panda_credential_audit WHERE action = 'released'"
    )
    assert sorted((row["panda_id"], row["attempt_nr"]) for row in released) == sorted(taken)


async def test_order_is_priority_then_age_and_only_what_fits(world: World) -> None:
    jobs = [spec("low", priority=1), spec("high", priority=5), spec("late", priority=5), spec("wide", cores=4)]
    await world.submit(jobs=jobs)
    pilot = await world.pilot()
    assert [job["spec"]["job_name"] for job in await pilot.acquire(cores=1, n_jobs=10)] == ["high", "late", "low"]
    for lack in ({"cores": 3}, {"memory": 10}, {"disk_space": 10}, {"remaining_time": 60}):
        assert await pilot.acquire(**lack) == []
    assert [job["spec"]["job_name"] for job in await pilot.acquire()] == ["wide"]


async def test_no_dispatch_for_banned_expiring_or_destroyed_credentials(world: World) -> None:
    credential = await world.credential()
    number = credential["credential_id"]
    task = await world.submit(credential_id=number)
    pilot = await world.pilot()

    await world.good("POST", "/v1/bans", {"dn": ALICE_DN, "reason": "compromised"})
    assert await pilot.acquire() == []
    refused = await world.call("POST", "/v1/job/submit", submission(number))
    assert (refused.status_code, refused.json()["code"]) == (409, "banned")
    assert "compromised" in refused.json()["detail"]
    await world.good("POST", "/v1/bans/lift", {"dn": ALICE_DN})

    await world.sql("UPDATE panda_credential SET expires_at = now() + interval '59 minutes'")
    assert await pilot.acquire() == []
    refused = await world.call("POST", "/v1/job/submit", submission(number))
    assert "before the job's time limit of 3600 s" in refused.json()["detail"]

    assert await world.services.upkeep.close_without_credential() == 1
    assert await counts(world, task["task_id"]) == {"closed": 1}
    assert "stage a fresh one" in (await world.job(task["first_panda_id"]))["reason"]


async def test_a_resubmission_with_a_fresh_credential_revives_what_was_closed(world: World) -> None:
    stale = await world.credential()
    task = await world.submit(key="k", credential_id=stale["credential_id"])
    await world.good("POST", f"/v1/creds/{stale['credential_id']}/destroyed")
    await world.services.upkeep.close_without_credential()
    fresh = await world.credential()
    again = await world.submit(key="k", credential_id=fresh["credential_id"], ti=ti(2))
    assert (again["task_id"], again["created"], again["resumed"]) == (task["task_id"], False, 1)
    (job,) = await (await world.pilot()).acquire()
    assert job["credential"]["credential_id"] == fresh["credential_id"]


def submission(credential_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "task_key": "another key",
        "task_name": "t",
        "owner": "alice",
        "credential_id": credential_id,
        "queue": "DEMO",
        "ti": ti(),
        "jobs": [spec()],
    } | changes


# --- submission --------------------------------------------------------------------------------------------------


async def test_submission_is_idempotent_also_at_the_same_time(world: World) -> None:
    credential = await world.credential()
    wanted = submission(credential["credential_id"], jobs=[spec(f"j{i}") for i in range(50)])
    replies = await asyncio.gather(*(world.good("POST", "/v1/job/submit", wanted) for _ in range(8)))
    assert sorted(reply["created"] for reply in replies) == [False] * 7 + [True]
    assert len({(reply["task_id"], reply["first_panda_id"], reply["n_jobs"]) for reply in replies}) == 1
    assert (await world.sql("SELECT count(*) AS n FROM panda_job"))[0]["n"] == 50
    assert await counts(world, replies[0]["task_id"]) == {"activated": 50}


async def test_a_known_key_with_other_content_is_a_conflict(world: World) -> None:
    number = (await world.credential())["credential_id"]
    await world.good("POST", "/v1/job/submit", submission(number))
    for change in ({"jobs": [spec(argv=["false"])]}, {"jobs": [spec(), spec()]}):
        refused = await world.call("POST", "/v1/job/submit", submission(number) | change)
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict"), change


async def test_what_cannot_be_is_refused_at_submission(world: World) -> None:
    number = (await world.credential())["credential_id"]
    for change, says in (
        ({"queue": "NOWHERE"}, "no queue 'NOWHERE'"),
        ({"jobs": [spec(cores=64)]}, "cores = 64"),
        ({"jobs": [spec(walltime_s=7200)]}, "walltime_s = 7200, but a pilot of queue DEMO has 6900"),
        ({"owner": "bob"}, "no credential"),
        ({"credential_id": 10**9}, "no credential"),
    ):
        refused = await world.call("POST", "/v1/job/submit", submission(number) | change)
        assert refused.status_code in (400, 404), change
        assert says in refused.json()["detail"]
    assert (await world.sql("SELECT count(*) AS n FROM panda_task"))[0]["n"] == 0


async def test_a_new_try_adopts_and_repeats_only_what_is_not_finished(world: World) -> None:
    task = await world.submit(4, key="k")
    first = task["first_panda_id"]
    pilot = await world.pilot()
    done, bad, running = await pilot.acquire(n_jobs=3)
    await pilot.good_report(done, "starting", "running", "finished")
    for _ in range(3):
        await pilot.good_report(bad, "starting", "running", "failed", errors=[USER_ERROR])
        (bad,) = await pilot.acquire() if (await world.job(bad["panda_id"]))["status"] == "activated" else (bad,)
    await pilot.good_report(running, "starting", "running")
    assert await counts(world, task["task_id"]) == {"finished": 1, "failed": 1, "running": 1, "activated": 1}

    repeat = await world.submit(4, key="k", credential_id=1)
    assert repeat["resumed"] == 0
    again = await world.submit(4, key="k", credential_id=1, ti=ti(2))
    assert (again["created"], again["resumed"], again["first_panda_id"]) == (False, 1, first)
    assert await counts(world, task["task_id"]) == {"finished": 1, "activated": 2, "running": 1}
    view = await world.job(bad["panda_id"])
    assert (view["status"], view["attempt_nr"], view["ti"]["try_number"]) == ("activated", 4, 2)
    await pilot.good_report(running, "finished")


# --- leases and fencing ------------------------------------------------------------------------------------------


async def test_a_silent_pilot_loses_its_job_uncharged_and_is_told_so(world: World) -> None:
    task = await world.submit(jobs=[spec(max_attempt=1, outputs=[{"lfn": "out"}])])
    first, second = await world.pilots(2)
    (old,) = await first.acquire()
    await first.good_report(old, "starting", "running")
    assert await world.services.upkeep.expire() == []
    await world.end_lease(old["panda_id"])
    assert await asyncio.gather(world.services.upkeep.expire(), world.services.upkeep.expire()) in (
        [[old["panda_id"]], []],
        [[], [old["panda_id"]]],
    )
    (new,) = await second.acquire()
    assert (new["panda_id"], new["attempt_nr"]) == (old["panda_id"], 2)
    await second.good_report(new, "starting", "running")

    before = await world.sql("SELECT * FROM panda_job")
    for status in ("running", "finished"):
        late = await first.report(old, status)
        assert (late.status_code, late.json()["code"]) == (409, "stale-report")
    assert (await first.put(old, "out", b"late")).json()["code"] == "stale-report"
    assert await world.sql("SELECT * FROM panda_job") == before

    assert (await second.put(new, "out", b"in time")).is_success
    await second.good_report(new, "finished")
    assert (await world.job(old["panda_id"]))["status"] == "finished"
    lost = (await attempts(world, old["panda_id"]))[1]
    assert (lost["status"], lost["errors"][0]["code"], lost["errors"][0]["source"]) == ("failed", 100, "jobDispatcher")
    assert await counts(world, task["task_id"]) == {"finished": 1}


async def test_only_the_holder_with_its_token_may_report(world: World) -> None:
    await world.submit()
    holder, other = await world.pilots(2)
    (job,) = await holder.acquire()
    for pilot, change in (
        (other, {}),
        (holder, {"token": "wrong"}),
        (holder, {"attempt_nr": 2}),
        (holder, {"panda_id": 999}),
    ):
        refused = await pilot.report(job | change, "starting")
        assert (refused.status_code, refused.json()["code"]) == (409, "stale-report")
    assert (await world.job(job["panda_id"]))["status"] == "sent"


async def test_repeated_reports_change_nothing(world: World) -> None:
    await world.submit(2)
    pilot = await world.pilot()
    done, bad = await pilot.acquire(n_jobs=2)
    for status in ("starting", "running", "finished"):
        for _ in range(3):
            await pilot.good_report(done, status)
    for _ in range(3):
        await pilot.good_report(bad, "activated", errors=[SITE_ERROR])
    log = await world.sql(
        "SELECT old_status, new_status FROM panda_job_status_log WHERE panda_id = $1", done["panda_id"]
    )
    assert [row["new_status"] for row in log] == ["activated", "sent", "starting", "running", "finished"]
    view = await world.job(bad["panda_id"])
    assert (view["status"], view["attempt_nr"], len(view["attempts"])) == ("activated", 2, 1)
    contradiction = await pilot.report(done, "failed")
    assert contradiction.json()["code"] == "stale-report"


async def test_heartbeats_renew_the_lease_and_a_clock_of_the_pilot_does_not_matter(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    await world.end_lease(job["panda_id"])
    reply = await pilot.good_report(job, "running")
    assert reply["lease_expires_at"] > to_wire(utcnow())
    assert await world.services.upkeep.expire() == []


async def test_a_live_job_is_looked_at_when_its_pilot_could_be_suspected(world: World) -> None:
    upkeep = world.services.upkeep
    await world.submit(2)
    live, silent = await (await world.pilot()).acquire(n_jobs=2)
    await world.end_lease(silent["panda_id"])
    await world.sql("UPDATE panda_job SET check_at = now() WHERE panda_id = $1", live["panda_id"])
    looks = await asyncio.gather(*(upkeep.move_checks_on() for _ in range(3)))
    assert sum(looks) == 1, "each is moved on once, and who is silent never"
    ((moved,),) = await world.sql(
        "SELECT check_at = lease_expires_at - interval '30 s' FROM panda_job WHERE panda_id = $1", live["panda_id"]
    )
    assert moved
    assert await upkeep.expire() == [silent["panda_id"]]
    assert await upkeep.move_checks_on() == 0


async def test_handed_back_jobs_go_to_another_pilot_at_most_20_times(world: World) -> None:
    task = await world.submit(jobs=[spec(max_attempt=1)])
    for n in range(21):
        pilot = await world.pilot()
        (job,) = await pilot.acquire()
        assert job["attempt_nr"] == n + 1
        await pilot.good_report(job, "starting", "activated", errors=[SITE_ERROR], credential_event="refused")
    view = await world.job(task["first_panda_id"])
    assert (view["status"], len(view["attempts"])) == ("failed", 21)
    assert all(attempt["status"] == "failed" for attempt in view["attempts"])
    assert "given up after 20" in view["reason"]
    assert "1226" in view["reason"]


async def test_failures_of_the_payload_use_up_the_attempts(world: World) -> None:
    task = await world.submit(jobs=[spec(max_attempt=2)])
    pilot = await world.pilot()
    for left in (True, False):
        (job,) = await pilot.acquire()
        await pilot.good_report(job, "starting", "running", "failed", trans_exit_code=139, errors=[USER_ERROR])
        assert (await world.good("GET", f"/v1/task/{task['task_id']}/progress"))["done"] is not left
    assert [attempt["exit_code"] for attempt in await attempts(world, job["panda_id"])] == [139, 139]
    retried = await world.good("POST", f"/v1/task/{task['task_id']}/retry")
    assert retried["counts"] == {"activated": 1}
    (job,) = await pilot.acquire()
    assert job["attempt_nr"] == 3


# --- kill --------------------------------------------------------------------------------------------------------


async def test_a_kill_stops_what_waits_and_tells_the_pilots_of_the_rest(world: World) -> None:
    task = await world.submit(3)
    pilot = await world.pilot()
    done, running = await pilot.acquire(n_jobs=2)
    await pilot.good_report(done, "starting", "running", "finished")
    await pilot.good_report(running, "starting", "running")
    for _ in range(2):
        reply = await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "enough", "ti": ti()})
        assert reply["counts"] == {"finished": 1, "running": 1, "cancelled": 1}
    assert (await pilot.good_report(running, "running"))["command"] == "tobekilled"
    await pilot.good_report(running, "cancelled")
    assert await counts(world, task["task_id"]) == {"finished": 1, "cancelled": 2}
    assert (await attempts(world, running["panda_id"]))[0]["status"] == "cancelled"


async def test_who_lost_the_jobs_cannot_cancel_them(world: World) -> None:
    number = (await world.credential())["credential_id"]
    task = await world.submit(2, key="k", credential_id=number)
    await world.submit(2, key="k", credential_id=number, ti=ti(2))
    late = await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "on_kill", "ti": ti(1)})
    assert late["counts"] == {"activated": 2}
    assert "another try" in late["note"]
    own = await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "on_kill", "ti": ti(2)})
    assert own["counts"] == {"cancelled": 2}


async def test_a_new_try_after_a_kill_fences_the_pilot_that_has_not_heard_of_it(world: World) -> None:
    number = (await world.credential())["credential_id"]
    task = await world.submit(key="k", credential_id=number)
    pilot = await world.pilot()
    (old,) = await pilot.acquire()
    await pilot.good_report(old, "starting", "running")
    await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "cleared", "ti": ti()})
    again = await world.submit(key="k", credential_id=number, ti=ti(2))
    assert again["resumed"] == 1
    assert (await pilot.report(old, "running")).json()["code"] == "stale-report"
    (new,) = await pilot.acquire()
    assert new["attempt_nr"] == 2
    assert [each["status"] for each in await attempts(world, old["panda_id"])] == ["sent", "cancelled"]


async def test_a_killed_job_whose_pilot_is_gone_ends_as_cancelled(world: World) -> None:
    task = await world.submit()
    (job,) = await (await world.pilot()).acquire()
    await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "enough"})
    await world.end_lease(job["panda_id"])
    await world.services.upkeep.expire()
    assert await counts(world, task["task_id"]) == {"cancelled": 1}


async def test_kills_and_claims_at_once_leave_nothing_behind(world: World) -> None:
    task = await world.submit(300)
    pilots = await world.pilots(8)
    path = f"/v1/task/{task['task_id']}/kill"

    async def work(pilot: Any) -> None:
        for _ in range(6):
            for job in await pilot.acquire(n_jobs=3):
                await pilot.report(job, "activated", errors=[SITE_ERROR])

    await asyncio.gather(*(work(pilot) for pilot in pilots), world.good("POST", path, {"reason": "stop"}))
    after = await world.sql("SELECT status, command FROM panda_job WHERE status <> 'cancelled'")
    assert [dict(row) for row in after] == []
    assert await counts(world, task["task_id"]) == {"cancelled": 300} == await recount(world, task["task_id"])


# --- logs and counts ---------------------------------------------------------------------------------------------


async def test_the_status_log_tells_who_and_why(world: World) -> None:
    task = await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "activated", errors=[SITE_ERROR])
    await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "no more interest"})
    rows = await world.sql("SELECT attempt_nr, old_status, new_status, actor, reason FROM panda_job_status_log")
    who = f"pilot:{pilot.pilot_id}"
    assert [tuple(row.values()) for row in rows] == [
        (1, None, "activated", "client:tests", ""),
        (1, "activated", "sent", who, ""),
        (1, "sent", "starting", who, ""),
        (2, "starting", "activated", who, "pilot error 1226: the switch failed"),
        (2, "activated", "cancelled", "client:tests", "no more interest"),
    ]


async def test_counts_are_the_same_folded_or_not(world: World) -> None:
    task = await world.submit(30)
    pilot = await world.pilot()
    for _ in range(3):
        for job in await pilot.acquire(n_jobs=5):
            await pilot.good_report(job, "starting", "running", "finished")
        before = await counts(world, task["task_id"])
        await asyncio.gather(world.services.upkeep.fold_counts(), world.services.upkeep.fold_counts())
        assert await counts(world, task["task_id"]) == before == await recount(world, task["task_id"])
    assert (await world.sql("SELECT count(*) AS n FROM panda_task_delta"))[0]["n"] == 0


async def test_only_the_retriever_gets_the_job(world: World) -> None:
    await world.submit(2)
    offer = PilotOffer(site_name="DEMO", node="wn", cores=1, memory=8000, disk_space=8000, remaining_time=7200)
    pilot = await world.pilot()
    await world.sql("UPDATE panda_pilot SET state = 'started'")
    ask = world.services.jobs.acquire
    mallory = "/O=Test Grid/CN=Mallory"
    for dn, token_only, n in (
        (None, False, 0),
        ("", False, 0),
        ("", True, 0),
        (mallory, False, 0),
        (mallory, True, 0),
        (PILOT_DN, False, 1),
        (None, True, 1),
    ):
        jobs = await ask(offer, pilot_id=pilot.pilot_id, queue="DEMO", pilot_dn=dn, token_only=token_only)
        assert jobs is not None
        assert len(jobs) == n, (dn, token_only)
