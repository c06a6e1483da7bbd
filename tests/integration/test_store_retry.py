"""Retry rules on a real store: what the next attempt asks for, where it runs, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.dispatcher import Queue, Slot, World, job_database, spec, template_database, ti, world
from support.postgres import postgres

from airpanda.db.sql import counts as counts_sql

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
MEMORY = {"source": "pilot", "code": 1212, "diag": "out of memory", "blame": "user"}
TIME = {"source": "pilot", "code": 1213, "diag": "the time limit", "blame": "user"}
OTHER_DN = "/O=Test Grid/CN=Robot: pilot factory 2"
SWITCH = {"source": "pilot", "code": 1226, "diag": "the switch failed", "blame": "site"}
PAYLOAD = {"source": "exe", "code": 7, "diag": "bad input file", "blame": "user"}


async def fail(pilot: Any, error: dict[str, Any], **offer: Any) -> dict[str, Any]:
    (job,) = await pilot.acquire(**offer)
    await pilot.good_report(job, "starting", "running", "failed", errors=[error])
    return dict(job)


async def ask_from(world: World, node: str) -> None:
    """Let there be a pilot on that node, which finds nothing."""
    assert await (await world.pilot()).acquire(node=node) == []


async def attempts(world: World, panda_id: int) -> list[dict[str, Any]]:
    """The newest first."""
    return list((await world.job(panda_id))["attempts"])


async def test_out_of_memory_asks_for_more_and_the_pilot_enforces_it(world: World) -> None:
    await world.submit(jobs=[spec(memory_mib=2000)])
    pilot = await world.pilot()
    job = await fail(pilot, MEMORY)
    assert await pilot.acquire(memory=2999) == []
    (again,) = await pilot.acquire(memory=3000)
    assert (again["spec"]["memory_mib"], again["attempt_nr"]) == (3000, 2)
    (_, first) = await attempts(world, job["panda_id"])
    assert "more memory" in first["why"]
    assert "asks for 3000 MiB instead of 2000" in first["why"]
    assert "used up attempt 1 of 3" in first["why"]


async def test_more_is_never_more_than_a_slot(world: World) -> None:
    await world.submit(jobs=[spec(memory_mib=7000, max_attempt=50)])
    pilot = await world.pilot()
    for _ in range(3):
        await fail(pilot, MEMORY)
    (again,) = await pilot.acquire()
    assert again["spec"]["memory_mib"] == 8000


@pytest.mark.parametrize(("lasts", "walltime_s"), [("2 h", 5400), ("80 min", 3600)])
async def test_more_time_is_never_more_than_the_credential_lasts(world: World, lasts: str, walltime_s: int) -> None:
    await world.submit()
    pilot = await world.pilot()
    await world.sql(f"UPDATE panda_credential SET expires_at = now() + interval '{lasts}'")
    job = await fail(pilot, TIME)
    await world.services.upkeep.close_without_credential()
    (again,) = await pilot.acquire()
    assert (again["spec"]["walltime_s"], again["attempt_nr"]) == (walltime_s, 2)
    (_, first) = await attempts(world, job["panda_id"])
    assert ("no more time is asked for: the owner's credential lasts" in first["why"]) is (walltime_s == 3600)


@pytest.mark.parametrize(
    ("error", "slot", "gets"),
    [
        (MEMORY, Slot(memory_mib=2500), (2500, 3600)),
        (MEMORY, Slot(memory_mib=9000), (3000, 3600)),
        (TIME, Slot(walltime_s=4500), (2000, 4200)),
        (TIME, Slot(), (2000, 4500)),
    ],
    ids=["less memory", "enough", "less time", "a shorter credential"],
)
async def test_what_was_raised_fits_the_queue_that_the_job_moves_to(
    world: World, error: dict[str, Any], slot: Slot, gets: tuple[int, int]
) -> None:
    world.queues["THERE"] = Queue("THERE", slot=slot)
    credential = (await world.credential(scope="user"))["credential_id"]
    wanted: dict[str, Any] = {"key": "k", "credential_id": credential, "jobs": [spec(memory_mib=2000)]}
    await world.submit(**wanted)
    await fail(await world.pilot(), error)
    await world.sql("UPDATE panda_credential SET expires_at = now() + interval '5402 s'")
    await world.submit(**wanted | {"queue": "THERE", "ti": ti(2)})
    assert [tuple(row.values())[1:] for row in await world.sql(counts_sql.LANE_COUNTS)] == [(1, 0)]
    there = await world.pilot("THERE")
    assert await there.acquire(memory=gets[0] - 1) == []
    (job,) = await there.acquire(memory=gets[0], remaining_time=gets[1] + 5)
    assert job["spec"]["memory_mib"] == gets[0]
    assert job["spec"]["walltime_s"] == pytest.approx(gets[1], abs=5)


async def test_lanes_stay_counted_when_needs_change(world: World) -> None:
    await world.submit(jobs=[spec(memory_mib=2000)])
    pilot = await world.pilot()
    await fail(pilot, MEMORY)
    assert [tuple(row.values())[1:] for row in await world.sql(counts_sql.LANE_COUNTS)] == [(1, 0)]
    await pilot.acquire()
    assert [tuple(row.values())[1:] for row in await world.sql(counts_sql.LANE_COUNTS)] == [(0, 1)]
    await world.services.upkeep.fold_counts()
    assert [tuple(row.values())[1:] for row in await world.sql(counts_sql.LANE_COUNTS)] == [(0, 1)]


@pytest.mark.parametrize("path", ["job", "task"])
async def test_a_retry_is_for_the_pilots_that_may_retrieve_the_credential_of_now(world: World, path: str) -> None:
    """Another try has adopted the panda task while its job ran: whose pilots get it next is another DN's."""
    wanted: dict[str, Any] = {"key": "k", "jobs": [spec(max_attempt=1, memory_mib=2000), spec("other")]}
    task = await world.submit(**wanted)
    pilot = await world.pilot()
    jobs = await pilot.acquire(n_jobs=2)
    for job in jobs:
        await pilot.good_report(job, "starting", "running")
    fresh = (await world.credential(retriever_dn=OTHER_DN, fqans=["/test"]))["credential_id"]
    await world.submit(**wanted, credential_id=fresh, ti=ti(2))
    for job in jobs:
        await pilot.good_report(job, "failed", errors=[PAYLOAD])
    statuses = {job["panda_id"]: (await world.job(job["panda_id"]))["status"] for job in jobs}
    assert sorted(statuses.values()) == ["activated", "failed"]
    failed = next(panda_id for panda_id, status in statuses.items() if status == "failed")

    await world.good("POST", f"/v1/job/{failed}/retry" if path == "job" else f"/v1/task/{task['task_id']}/retry")
    other = replace(await world.pilot(), dn=OTHER_DN)
    got = await other.acquire(n_jobs=2)
    assert {job["panda_id"] for job in got} == ({failed} if path == "job" else set(statuses))
    assert {job["credential"]["credential_id"] for job in got} == {fresh}
    assert len(await pilot.acquire(n_jobs=2)) == 2 - len(got)
    counted = [tuple(row.values())[1:] for row in await world.sql(counts_sql.LANE_COUNTS)]
    assert sum(leased for _, leased in counted) == 2
    assert [waiting for waiting, _ in counted] == [0] * len(counted)


async def test_what_the_site_failed_is_tried_on_another_node_uncharged(world: World) -> None:
    await ask_from(world, "good.example.org")
    await world.submit(jobs=[spec(max_attempt=1)])
    pilot = await world.pilot()
    job = await fail(pilot, SWITCH, node="bad.example.org")
    assert await pilot.acquire(node="bad.example.org") == []
    (again,) = await pilot.acquire(node="good.example.org")
    assert again["attempt_nr"] == 2
    (_, first) = await attempts(world, job["panda_id"])
    assert "cost the user none of the attempts" in first["why"]


async def test_a_node_is_avoided_for_a_while_only(world: World) -> None:
    await ask_from(world, "other.example.org")
    await world.submit()
    pilot = await world.pilot()
    await fail(pilot, SWITCH, node="only.example.org")
    assert await pilot.acquire(node="only.example.org") == []
    await world.sql("UPDATE panda_job SET avoid_until = now()")
    assert len(await pilot.acquire(node="only.example.org")) == 1


async def test_the_only_node_is_not_avoided(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    await fail(pilot, SWITCH, node="only.example.org")
    assert len(await pilot.acquire(node="only.example.org")) == 1


async def test_a_silent_pilots_node_is_avoided(world: World) -> None:
    await ask_from(world, "alive.example.org")
    await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire(node="dead.example.org")
    await world.end_lease(job["panda_id"])
    await world.services.upkeep.expire()
    other = await world.pilot()
    assert await other.acquire(node="dead.example.org") == []
    assert len(await other.acquire(node="alive.example.org")) == 1
    assert "retry elsewhere" in (await attempts(world, job["panda_id"]))[1]["why"]


async def test_a_live_pilot_that_gets_nowhere_loses_the_job(world: World) -> None:
    await world.submit(jobs=[spec(max_attempt=1)])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting")
    longest = world.settings.state_timeouts
    assert await world.services.upkeep.end_overdue(longest) == []
    await world.sql("UPDATE panda_job SET changed_at = now() - interval '61 min', check_at = now()")
    assert await world.services.upkeep.end_overdue(longest) == [job["panda_id"]]
    assert await world.services.upkeep.end_overdue(longest) == []
    assert (await pilot.report(job, "running")).json()["code"] == "stale-report"
    (again,) = await pilot.acquire()
    assert again["attempt_nr"] == 2
    (_, first) = await attempts(world, job["panda_id"])
    assert (first["errors"][0]["code"], first["status"]) == (105, "failed")


async def test_jobs_that_nobody_takes_are_closed_in_the_end(world: World) -> None:
    old = await world.submit(3)
    await world.submit(2)
    week = world.settings.state_timeouts["activated"]
    await world.sql("UPDATE panda_job SET changed_at = now() - interval '8 d' WHERE task_id = $1", old["task_id"])
    assert await world.services.upkeep.close_overdue(week) == 3
    assert await world.services.upkeep.close_overdue(week) == 0
    assert (await world.job(old["first_panda_id"]))["reason"] == "no pilot has taken it within 604800 s"


async def test_an_operators_rule_ends_and_only_logs_as_told(world: World) -> None:
    wanted = {"source": "exe", "code": 7, "pattern": "bad input", "action": "no_retry", "is_active": False}
    dry = await world.good("POST", "/v1/retry_rules", wanted)
    await world.submit(jobs=[spec(max_attempt=5)])
    pilot = await world.pilot()
    job = await fail(pilot, PAYLOAD)
    assert (await world.job(job["panda_id"]))["status"] == "activated"
    assert "would apply; it only logs" in (await attempts(world, job["panda_id"]))[0]["why"]

    live = await world.good("POST", "/v1/retry_rules", wanted | {"is_active": True})
    await fail(pilot, PAYLOAD)
    assert (await world.job(job["panda_id"]))["status"] == "failed"
    assert "no further attempt by itself" in (await attempts(world, job["panda_id"]))[0]["why"]

    await world.good("POST", f"/v1/retry_rules/{live['rule_id']}/end")
    await world.good("POST", f"/v1/job/{job['panda_id']}/retry")
    await fail(pilot, PAYLOAD)
    assert (await world.job(job["panda_id"]))["status"] == "activated"
    listed = {each["rule_id"]: each for each in await world.good("GET", "/v1/retry_rules")}
    assert listed[dry["rule_id"]]["expires_at"] is None
    assert listed[live["rule_id"]]["expires_at"] is not None


async def test_rules_in_force_are_shown_before_a_thousand_that_have_ended(world: World) -> None:
    wanted = {"source": "exe", "code": 7, "action": "no_retry"}
    old = await world.good("POST", "/v1/retry_rules", wanted)
    await world.sql(
        "INSERT INTO panda_retry_rule (source, code, pattern, queue, action, factor, is_active, expires_at,"
        " description, set_by) SELECT source, code, pattern, queue, action, factor, is_active, now(), 'x', set_by"
        " FROM panda_retry_rule, generate_series(1, 1000) WHERE rule_id = $1",
        old["rule_id"],
    )
    new = await world.good("POST", "/v1/retry_rules", wanted)
    shown = [each["rule_id"] for each in await world.good("GET", "/v1/retry_rules")]
    assert len(shown) == 1000
    assert [number for number in shown if number in (new["rule_id"], old["rule_id"])] == [
        new["rule_id"],
        old["rule_id"],
    ]


async def test_only_clients_for_all_owners_see_and_set_rules(world: World) -> None:
    narrow = world.client_headers(owners=("alice",))
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/1/end")):
        body = {"source": "exe", "action": "no_retry"} if path == "" and method == "POST" else None
        assert (await world.call(method, f"/v1/retry_rules{path}", body, headers=narrow)).status_code == 403
    for wrong in ({"pattern": "x" * 501}, {"action": "more"}, {"factor": 0}, {"code": "x"}, {"source": "me"}):
        body = {"source": "exe", "action": "no_retry"} | wrong
        assert (await world.call("POST", "/v1/retry_rules", body)).status_code == 422
    assert (await world.call("POST", "/v1/retry_rules/999999/end")).status_code == 404


async def test_clients_of_some_queues_set_and_end_rules_of_those_only(world: World) -> None:
    narrow = world.client_headers(queues=("DEMO",))
    body = {"source": "exe", "code": 7, "action": "no_retry"}
    for queue, status in (("DEMO", 201), ("OTHER", 403), ("", 403)):
        wanted = body | {"queue": queue}
        added = await world.call("POST", "/v1/retry_rules", wanted, headers=narrow)
        assert added.status_code == status, queue
        number = (await world.good("POST", "/v1/retry_rules", wanted))["rule_id"]
        ended = await world.call("POST", f"/v1/retry_rules/{number}/end", headers=narrow)
        assert ended.status_code == (200 if status == 201 else 403), queue
        listed = {each["rule_id"]: each for each in await world.good("GET", "/v1/retry_rules")}
        assert (listed[number]["expires_at"] is None) is (status == 403), queue
