"""The store behind the pilot factory: one holder for each queue, and a view that tells what it decides from."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support.dispatcher import Pilot, World, job_database, spec, template_database, ti, world
from support.postgres import postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
BEGIN = {"holder": "a test", "hold_s": 60}
SITE = {"source": "pilot", "code": 1226, "diag": "the switch failed", "blame": "site"}
USER = {"source": "exe", "code": 127, "diag": "no such program", "blame": "user"}


async def begin(world: World) -> dict[str, Any]:
    view: dict[str, Any] = await world.good("POST", "/v1/factory/DEMO/begin", BEGIN)
    return view


async def look(world: World) -> dict[str, Any]:
    view: dict[str, Any] = await world.good("GET", "/v1/factory/DEMO")
    return view


async def submitted(world: World, n: int, queue: str = "DEMO") -> list[Pilot]:
    batch = await world.good("POST", "/v1/batch/intend", {"queue": queue, "n_pilots": n})
    handles = {str(p["pilot_id"]): f"h{p['pilot_id']}" for p in batch["pilots"]}
    record = {"state": "submitted", "ce": "local:DEMO", "handles": handles}
    await world.good("POST", f"/v1/batch/{batch['batch_id']}/record", record)
    return [Pilot(world, each["pilot_id"], each["token"], queue) for each in batch["pilots"]]


async def started(pilot: Pilot, node: str = "wn1.example.org") -> None:
    await pilot.post("update_worker_status", {"status": "started", "node": node})


async def test_a_queue_has_one_factory_at_a_time_and_the_overtaken_one_decides_nothing(world: World) -> None:
    answers = await asyncio.gather(*(world.call("POST", "/v1/factory/DEMO/begin", BEGIN) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 4
    first = next(answer.json() for answer in answers if answer.status_code == 200)
    await world.sql("UPDATE panda_factory SET held_until = now()")
    second = await begin(world)
    assert second["fence"] == first["fence"] + 1
    end = {"fence": first["fence"], "memory": {"x": 1}, "decisions": ["nothing"]}
    assert (await world.call("POST", "/v1/factory/DEMO/end", end)).status_code == 409
    intent = {"queue": "DEMO", "n_pilots": 1, "key": "factory/1", "factory_fence": first["fence"]}
    late = await world.call("POST", "/v1/batch/intend", intent)
    assert (late.status_code, "taken over" in late.text) == (409, True)
    assert await world.sql("SELECT * FROM panda_pilot") == []
    assert (await world.call("POST", "/v1/batch/intend", intent | {"factory_fence": second["fence"]})).is_success
    end["fence"] = second["fence"]
    assert (await world.call("POST", "/v1/factory/DEMO/end", end)).status_code == 204
    assert (await begin(world))["memory"] == {"x": 1}
    (state,) = [s for s in await world.good("GET", "/v1/factory") if s["queue"] == "DEMO"]
    assert (state["decisions"], state["live_pilots"], state["state"]) == (["nothing"], 1, "online")


async def test_demand_is_what_a_pilot_of_the_queue_could_take(world: World) -> None:
    jobs = [spec("a"), spec("b", cores=4), spec("large", memory_mib=7000), spec("feature", features=["gpu"])]
    await world.submit(jobs=jobs)
    await world.submit(queue="OTHER")
    await world.sql("UPDATE panda_lane SET memory_mib = 9000 WHERE memory_mib = 7000")
    assert (await look(world))["demand"] == {"waiting": 2, "waiting_cores": 5}


async def test_pilots_are_queued_idle_busy_or_silent(world: World) -> None:
    queued, idle, busy, silent, benched, over = await submitted(world, 6)
    await world.submit()
    for pilot in (idle, busy, silent, over):
        await started(pilot)
    assert await busy.acquire()
    assert await idle.acquire() == []
    await benched.post("update_worker_status", {"status": "benched", "node": "wn", "reason": "no switch"})
    await over.post("update_worker_status", {"status": "finished", "node": "wn"})
    old = "UPDATE panda_pilot SET last_seen_at = now() - interval '20 min', last_job_at = {} WHERE pilot_id = {}"
    await world.sql(old.format("NULL", silent.pilot_id))
    await world.sql(old.format("last_job_at - interval '19 min'", busy.pilot_id))
    found = {each["pilot_id"]: each for each in (await look(world))["pilots"]}
    assert {n: each["kind"] for n, each in found.items()} == {
        queued.pilot_id: "queued",
        idle.pilot_id: "idle",
        busy.pilot_id: "busy",
        silent.pilot_id: "silent",
        benched.pilot_id: "busy",
    }
    assert found[silent.pilot_id]["unheard_s"] > 1000
    assert found[busy.pilot_id]["unheard_s"] == 0
    assert found[queued.pilot_id]["handle"] == f"h{queued.pilot_id}"


async def test_a_queue_is_seen_by_whoever_may_use_it_and_by_nobody_else(world: World) -> None:
    async def seen() -> dict[str, Any]:
        found: dict[str, Any] = await world.good(
            "GET", "/v1/queue/DEMO", headers=world.client_headers(queues=("DEMO",))
        )
        return found

    empty = {"queue": "DEMO", "state": "online", "waiting": 0, "queued": 0, "idle": 0, "busy": 0, "silent": 0}
    assert await seen() == empty
    _, idle, busy, over = await submitted(world, 4)
    await started(idle)
    assert await idle.acquire() == []
    await world.submit(3)
    await world.submit(queue="OTHER")
    for pilot in (busy, over):
        await started(pilot)
    assert await busy.acquire()
    await over.post("update_worker_status", {"status": "finished", "node": "wn"})
    assert await seen() == empty | {"waiting": 2, "queued": 1, "idle": 1, "busy": 1}
    world.queues["DEMO"] = replace(world.queues["DEMO"], is_online=False)
    assert (await seen())["state"] == "offline"
    other = world.client_headers(queues=("OTHER",), pilots=True)
    refused = await world.call("GET", "/v1/queue/DEMO", headers=other)
    assert (refused.status_code, "may not use queue 'DEMO'" in refused.text) == (403, True)
    unknown = await world.call("GET", "/v1/queue/NONE")
    assert (unknown.status_code, "there is no queue 'NONE'" in unknown.text) == (400, True)


async def test_a_pilot_that_its_element_runs_and_nobody_hears_is_told_by_its_time(world: World) -> None:
    (pilot,) = await submitted(world, 1)
    seen = {"queue": "DEMO", "pilots": [{"pilot_id": pilot.pilot_id, "ce_state": "running"}]}
    await world.call("POST", "/v1/batch/observed", seen)
    await world.sql("UPDATE panda_pilot SET ce_running_at = now() - interval '1 h'")
    await world.call("POST", "/v1/batch/observed", seen)
    (each,) = (await look(world))["pilots"]
    assert (each["kind"], each["ce_state"], each["unheard_s"] > 3500) == ("queued", "running", True)


async def test_batches_tell_registered_eaten_and_cancelled_pilots(world: World) -> None:
    good, eaten, ours, waiting, benched = await submitted(world, 5)
    await started(good)
    await benched.post("update_worker_status", {"status": "benched", "node": "wn", "reason": "no switch"})
    seen = [
        {"pilot_id": eaten.pilot_id, "ce_state": "failed"},
        {"pilot_id": ours.pilot_id, "ce_state": "cancelled", "asked_to_end": True},
        {"pilot_id": waiting.pilot_id, "ce_state": "queued"},
    ]
    await world.call("POST", "/v1/batch/observed", {"queue": "DEMO", "pilots": seen})
    refused = await world.good("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 3})
    failure = {"state": "failed", "ce": "local:DEMO", "reason": "full"}
    await world.good("POST", f"/v1/batch/{refused['batch_id']}/record", failure)
    view = await look(world)
    (batch,) = view["batches"]
    counts = {key: batch[key] for key in ("pilots", "registered", "eaten", "cancelled")}
    assert counts == {"pilots": 5, "registered": 1, "eaten": 2, "cancelled": 1}
    assert set(view["queue_s"]) == {"local:DEMO"}


async def test_nodes_tell_short_pilots_and_failed_jobs_and_a_bad_one_gets_no_jobs(world: World) -> None:
    await world.submit(3)
    (good, *bad) = await submitted(world, 4)
    await started(good)
    (job,) = await good.acquire()
    await good.good_report(job, "starting", "running", "failed", trans_exit_code=1, errors=[SITE])
    for pilot in bad:
        await pilot.post("update_worker_status", {"status": "benched", "node": "hole", "reason": "no switch"})
    view = await look(world)
    nodes = {each["node"]: each for each in view["nodes"]}
    assert (nodes["hole"]["pilots"], nodes["hole"]["short"]) == (3, 3)
    assert (nodes["wn1.example.org"]["jobs_failed"], nodes["wn1.example.org"]["short"]) == (1, 0)
    fence = (await begin(world))["fence"]
    bench = {"node": "wn1.example.org", "until": "2100-01-01T00:00:00Z", "reason": "a black hole"}
    end = {"fence": fence, "memory": {}, "decisions": [], "benches": [bench]}
    await world.call("POST", "/v1/factory/DEMO/end", end)
    offer = {"site_name": "DEMO", "node": "wn1.example.org", "memory": 8000, "disk_space": 8000, "remaining_time": 7200}
    assert (await good.post("acquire_jobs", offer)).json() == {"jobs": [], "wait_s": 30.0, "command": ""}
    assert len((await good.post("acquire_jobs", offer | {"node": "other"})).json()["jobs"]) == 1
    assert set((await look(world))["bad_nodes"]) == {"wn1.example.org"}


async def score(world: World) -> tuple[int, int]:
    await world.services.jobs.settle()
    (node,) = (await look(world))["nodes"]
    return node["jobs_done"], node["jobs_failed"]


@pytest.mark.parametrize(
    ("status", "errors", "counts"),
    [
        ("failed", [], 0),
        ("failed", [USER], 0),
        ("failed", [USER, SITE], 0),
        ("failed", [SITE, USER], 1),
        ("failed", [SITE | {"blame": "system"}], 1),
        ("activated", [USER | {"source": "pilot"}], 0),
        ("activated", [SITE], 1),
    ],
)
async def test_a_node_answers_for_errors_of_the_site_and_the_system_only(
    world: World, status: str, errors: list[dict[str, Any]], counts: int
) -> None:
    await world.submit()
    (pilot,) = await submitted(world, 1)
    await started(pilot)
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", status, errors=errors)
    await pilot.good_report(job, status, errors=errors)
    assert await score(world) == (0, counts), "a repeat counts for nothing"


async def test_a_node_does_not_answer_for_what_a_person_stopped(world: World) -> None:
    first = (await world.submit())["first_panda_id"]
    (pilot,) = await submitted(world, 1)
    await started(pilot)
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    await world.good("POST", f"/v1/job/{first}/kill", {"reason": "wrong input"})
    await pilot.good_report(job, "failed", errors=[SITE])
    assert await score(world) == (0, 0)


async def test_a_good_end_counts_once_also_where_many_are_reported_at_once(world: World) -> None:
    await world.submit(3)
    (pilot,) = await submitted(world, 1)
    await started(pilot)
    jobs = await pilot.acquire(n_jobs=3)
    for job in jobs:
        await pilot.good_report(job, "starting", "running")
    for _ in range(2):
        await pilot.good_report(jobs[0], "finished")
    ends = [{"job_status": "finished"}, {"job_status": "failed", "errors": [SITE]}]
    bulk = [
        {"job_id": job["panda_id"], "attempt_nr": 1, "token": job["token"]} | end
        for job, end in zip(jobs[1:], ends, strict=True)
    ]
    for _ in range(2):
        assert (await pilot.post("update_jobs_bulk", {"job_list": bulk})).is_success
    assert await score(world) == (2, 1)


async def test_open_submissions_are_told_and_those_of_a_factory_known(world: World) -> None:
    mine = await world.good("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 2, "key": "factory/7/local"})
    await world.good("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 1, "hold_s": 1})
    await world.good("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 1, "purpose": "probe"})
    await submitted(world, 1)
    first, second, probe = (await look(world))["open"]
    assert (first["tag"], first["n_pilots"], first["held"], first["by_factory"]) == (mine["tag"], 2, True, True)
    assert (second["n_pilots"], second["by_factory"]) == (1, False)
    assert (probe["n_pilots"], probe["held"], probe["by_factory"]) == (1, True, False)
    known = await world.good("POST", "/v1/batch/known", {"tags": [mine["tag"], "ap-12345678-never"]})
    assert known == {"tags": [mine["tag"]]}


async def test_a_cancelled_batch_gets_no_jobs_and_only_its_own_try_may_cancel_it(world: World) -> None:
    await world.submit(5)
    intent = {"queue": "DEMO", "n_pilots": 1, "key": "k", "ti": ti(1)}
    batch = await world.good("POST", "/v1/batch/intend", intent)
    path = f"/v1/batch/{batch['batch_id']}"
    (ticket,) = batch["pilots"]
    record = {"state": "submitted", "ce": "c", "handles": {str(ticket["pilot_id"]): "h"}}
    await world.good("POST", f"{path}/record", record)
    pilot = Pilot(world, ticket["pilot_id"], ticket["token"], "DEMO")
    assert len(await pilot.acquire()) == 1
    await world.good("POST", "/v1/batch/intend", intent | {"ti": ti(2)})
    late = await world.good("POST", f"{path}/cancel", {"reason": "cleared", "ti": ti(1)})
    assert late["pilots"] == []
    assert len(await pilot.acquire()) == 1
    ended = await world.good("POST", f"{path}/cancel", {"reason": "cleared", "ti": ti(2)})
    assert [p["ce_job_id"] for p in ended["pilots"]] == ["h"]
    assert await pilot.acquire() == []
    await world.call("POST", f"{path}/pilot/{pilot.pilot_id}/log", {"text": "what it said"})
    assert (await world.good("GET", f"{path}/pilot/{pilot.pilot_id}"))["log_tail"] == "what it said"


async def test_a_client_of_another_queue_sees_nothing(world: World) -> None:
    headers = world.client_headers(queues=("OTHER",), pilots=True)
    for method, path, body in (
        ("GET", "/v1/factory/DEMO", None),
        ("POST", "/v1/factory/DEMO/begin", BEGIN),
        ("POST", "/v1/factory/DEMO/end", {"fence": 1, "memory": {}, "decisions": []}),
    ):
        assert (await world.call(method, path, body, headers=headers)).status_code == 403
    assert [s["queue"] for s in await world.good("GET", "/v1/factory", headers=headers)] == ["OTHER"]
    for path in ("/v1/factory/DEMO", "/v1/factory"):
        assert (await world.call("GET", path, headers=world.client_headers())).status_code == 403
