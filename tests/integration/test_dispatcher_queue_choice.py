"""Where a submission goes: one named queue, one of several, any; and where jobs go that are tried again."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import asyncpg
import pytest
from support.dispatcher import Queue, Slot, World, job_database, spec, template_database, ti, world
from support.postgres import postgres
from support.standin_pilots import SITE_FAULT, USER_FAULT

from airpanda.db.sql import jobs as jobs_sql

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


async def queue_of(world: World, submitted: dict[str, Any]) -> str:
    ((queue,),) = await world.sql("SELECT DISTINCT queue FROM panda_job WHERE task_id = $1", submitted["task_id"])
    return str(queue)


async def fail_all(world: World, queue: str, error: dict[str, Any], returns: int = 21) -> None:
    """Until the store gives up: a site's error is never charged, so it takes many."""
    for _ in range(returns):
        pilot = await world.pilot(queue)
        for job in await pilot.acquire(n_jobs=10):
            await pilot.good_report(job, "starting", "running", "failed", errors=[error])


@pytest.mark.parametrize(
    ("queue", "says"),
    [
        ("NOWHERE", "there is no queue 'NOWHERE'"),
        (["DEMO", "NOWHERE"], "there is no queue 'NOWHERE'"),
        ("CLOSED", "queue CLOSED is offline"),
        (["CLOSED", "SMALL"], "no queue fits: queue CLOSED is offline.*; job job-0 asks for cores = 2"),
    ],
)
async def test_a_queue_that_cannot_take_the_jobs_is_refused_in_one_sentence(
    world: World, queue: Any, says: str
) -> None:
    world.queues["CLOSED"] = Queue("CLOSED", is_online=False)
    world.queues["SMALL"] = Queue("SMALL", slot=Slot(cores=1))
    credential = await world.credential()
    wanted = {
        "task_key": "k", "task_name": "t", "owner": "alice", "queue": queue, "ti": ti(),
        "credential_id": credential["credential_id"], "jobs": [spec("job-0", cores=2)],
    }  # fmt: skip
    response = await world.call("POST", "/v1/job/submit", wanted)
    assert response.status_code == 400
    assert re.search(says, response.json()["detail"]), response.text


async def test_of_several_queues_the_one_that_fits_is_taken(world: World) -> None:
    world.queues["SMALL"] = Queue("SMALL", slot=Slot(cores=1))
    submitted = await world.submit(queue=["SMALL", "OTHER"], jobs=[spec(cores=2)])
    assert submitted["queue"] == await queue_of(world, submitted) == "OTHER"


async def test_any_queue_is_the_one_where_fewest_jobs_wait(world: World) -> None:
    await world.submit(3, queue="DEMO")
    await world.submit(1, queue="OTHER")
    assert await queue_of(world, await world.submit(queue="*")) == "OTHER"


async def test_any_queue_is_one_that_the_client_may_use(world: World) -> None:
    await world.submit(3, queue="DEMO")
    headers = world.client_headers(queues=("DEMO",))
    credential = await world.credential(scope="user")
    refused = await world.call("POST", "/v1/job/submit", _any(credential) | {"queue": "OTHER"}, headers=headers)
    assert refused.status_code == 403
    there = await world.good("POST", "/v1/job/submit", _any(credential) | {"task_key": "k2"}, headers=headers)
    assert there["queue"] == "DEMO"


def _any(credential: dict[str, Any]) -> dict[str, Any]:
    return {
        "task_key": "k", "task_name": "t", "owner": "alice", "queue": "*", "ti": ti(),
        "credential_id": credential["credential_id"], "jobs": [spec()],
    }  # fmt: skip


async def test_what_a_site_failed_is_tried_again_elsewhere(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    wanted: dict[str, Any] = {"key": "k", "queue": ["DEMO", "OTHER"], "credential_id": credential}
    submitted = await world.submit(2, **wanted)
    here = submitted["queue"]
    elsewhere = {"DEMO": "OTHER", "OTHER": "DEMO"}[here]
    await fail_all(world, here, SITE_FAULT)
    assert await queue_of(world, submitted) == here
    again = await world.submit(2, **wanted, ti=ti(2))
    assert (again["resumed"], again["queue"]) == (2, elsewhere)
    assert await queue_of(world, submitted) == elsewhere
    assert len(await (await world.pilot(elsewhere)).acquire(n_jobs=10)) == 2


async def test_what_no_pilot_took_is_tried_again_elsewhere(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    wanted: dict[str, Any] = {"key": "k", "queue": ["DEMO", "OTHER"], "credential_id": credential}
    here = (await world.submit(1, **wanted))["queue"]
    await world.sql("UPDATE panda_job SET changed_at = now() - interval '8 d'")
    assert await world.services.upkeep.close_overdue(world.settings.state_timeouts["activated"]) == 1
    again = await world.submit(1, **wanted, ti=ti(2))
    assert (again["resumed"], again["queue"]) == (1, {"DEMO": "OTHER", "OTHER": "DEMO"}[here])


async def test_what_its_owner_failed_stays_where_it_was(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    wanted: dict[str, Any] = {"key": "k", "queue": ["DEMO", "OTHER"], "credential_id": credential}
    submitted = await world.submit(1, **wanted)
    await fail_all(world, submitted["queue"], USER_FAULT, returns=3)
    again = await world.submit(1, **wanted, ti=ti(2))
    assert (again["resumed"], again["queue"]) == (1, submitted["queue"])


async def test_a_failing_site_is_better_than_none(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    submitted = await world.submit(1, key="k", credential_id=credential)
    await fail_all(world, "DEMO", SITE_FAULT)
    again = await world.submit(1, key="k", credential_id=credential, ti=ti(2))
    assert (again["resumed"], await queue_of(world, submitted)) == (1, "DEMO")


async def test_another_queue_in_the_dag_moves_what_waits_and_leaves_what_runs(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    submitted = await world.submit(2, key="k", credential_id=credential)
    (running,) = await (await world.pilot()).acquire(n_jobs=1)
    again = await world.submit(2, key="k", credential_id=credential, queue="OTHER", ti=ti(2))
    assert again["task_id"] == submitted["task_id"]
    rows = await world.sql("SELECT panda_id, queue, status FROM panda_job ORDER BY panda_id")
    assert {row["panda_id"]: (row["queue"], row["status"]) for row in rows} == {
        running["panda_id"]: ("DEMO", "sent"),
        submitted["first_panda_id"] + 1: ("OTHER", "activated"),
    }


async def test_jobs_at_a_queue_that_went_offline_can_still_be_adopted(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    await world.submit(1, key="k", credential_id=credential)
    world.queues["DEMO"] = Queue("DEMO", is_online=False)
    again = await world.submit(1, key="k", credential_id=credential, ti=ti(2))
    assert (again["created"], again["queue"]) == (False, "DEMO")


@pytest.mark.parametrize("how", ["changed", "always"])
async def test_starting_over_stops_the_old_jobs_and_makes_new_ones_once(world: World, how: str) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    old = await world.submit(2, key="k", credential_id=credential)
    strangers = await world.submit(1, key="k", owner="bob")
    (held,) = await (await world.pilot()).acquire(n_jobs=1)
    again: dict[str, Any] = {"key": "k", "credential_id": credential, "generation": 1, "start_over": how, "ti": ti(2)}
    jobs = [spec("job-0", argv=["false"]), spec("job-1")] if how == "changed" else [spec("job-0"), spec("job-1")]
    replies = await asyncio.gather(*(world.submit(jobs=jobs, **again) for _ in range(4)))
    assert sorted(reply["created"] for reply in replies) == [False] * 3 + [True]
    assert {reply["task_id"] for reply in replies} == {replies[0]["task_id"]} != {old["task_id"]}
    later = await world.submit(jobs=jobs, **again | {"ti": ti(3)})
    assert (later["task_id"], later["created"]) == (replies[0]["task_id"], False), "a retry is no new generation"
    rows = await world.sql("SELECT panda_id, status, command FROM panda_job WHERE task_id = $1", old["task_id"])
    assert {row["panda_id"]: (row["status"], row["command"]) for row in rows} == {
        held["panda_id"]: ("sent", "tobekilled"),
        old["first_panda_id"] + 1: ("cancelled", ""),
    }
    assert (await world.job(strangers["first_panda_id"]))["status"] == "activated"


@pytest.mark.parametrize("is_taken", [False, True])
async def test_a_submission_finds_what_its_key_names_after_a_start_over_beside_it(world: World, is_taken: bool) -> None:
    """It has seen the old jobs, and waits for their panda task while somebody else takes the key from it."""
    credential = (await world.credential(scope="user"))["credential_id"]
    old = await world.submit(1, key="k", credential_id=credential)
    new = await world.submit(1, key="new", credential_id=credential)
    beside = await asyncpg.connect(world.database.url())
    try:
        async with beside.transaction():
            key = await beside.fetchval("SELECT key_digest FROM panda_task WHERE task_id = $1", old["task_id"])
            await beside.execute(jobs_sql.RETIRE_TASK, old["task_id"])
            submitting = asyncio.create_task(world.submit(1, key="k", credential_id=credential, ti=ti(2)))
            await world.until_waiting(1)
            if is_taken:
                await beside.execute("UPDATE panda_task SET key_digest = $2 WHERE task_id = $1", new["task_id"], key)
        reply = await asyncio.wait_for(submitting, 60)
    finally:
        await beside.close()
    assert reply["created"] is not is_taken
    assert (reply["task_id"] == new["task_id"]) is is_taken


async def test_the_same_jobs_are_resumed_though_a_person_asks_anew(world: World) -> None:
    credential = (await world.credential(scope="user"))["credential_id"]
    old = await world.submit(1, key="k", credential_id=credential)
    again = await world.submit(1, key="k", credential_id=credential, generation=1, start_over="changed", ti=ti(2))
    assert (again["task_id"], again["created"]) == (old["task_id"], False)
