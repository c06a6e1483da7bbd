"""Intents of pilots: one submitter at a time, a repeat finds the same pilots, and a pilot outranks its element."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.dispatcher import World, job_database, template_database, world
from support.postgres import postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
HANDLES = {"state": "submitted", "ce": "local:DEMO"}


async def intend(world: World, **changes: Any) -> dict[str, Any]:
    wanted = {"queue": "DEMO", "n_pilots": 3, "key": "dag/run/task/-1"} | changes
    found: dict[str, Any] = await world.good("POST", "/v1/batch/intend", wanted)
    return found


async def record(world: World, batch: dict[str, Any], **changes: Any) -> Any:
    handles = {str(p["pilot_id"]): f"h-{p['pilot_id']}" for p in batch["pilots"]}
    body = {**HANDLES, "handles": handles, "fence": batch["fence"]} | changes
    return await world.call("POST", f"/v1/batch/{batch['batch_id']}/record", body)


async def let_go(world: World) -> None:
    await world.sql("UPDATE panda_batch SET held_until = now()")


async def observe(world: World, pilot_id: int, ce_state: str, **more: Any) -> None:
    body = {"queue": "DEMO", "pilots": [{"pilot_id": pilot_id, "ce_state": ce_state, **more}]}
    response = await world.call("POST", "/v1/batch/observed", body)
    assert response.status_code == 204, response.text


async def pilot_row(world: World, pilot_id: int) -> dict[str, Any]:
    return dict((await world.sql("SELECT * FROM panda_pilot WHERE pilot_id = $1", pilot_id))[0])


async def test_a_repeat_while_the_first_goes_on_is_refused(world: World) -> None:
    first = await intend(world)
    again = await world.call("POST", "/v1/batch/intend", {"queue": "DEMO", "n_pilots": 3, "key": "dag/run/task/-1"})
    assert (again.status_code, "another submission" in again.text) == (409, True)
    taken = await world.call("POST", f"/v1/batch/{first['batch_id']}/take", {})
    assert taken.status_code == 409
    assert len(await world.sql("SELECT * FROM panda_pilot")) == 3


async def test_a_repeat_after_a_crash_is_the_same_batch_with_fresh_tokens_and_the_old_holder_is_fenced(
    world: World,
) -> None:
    first = await intend(world)
    await let_go(world)
    again = await intend(world, n_pilots=7)
    assert (again["batch_id"], again["tag"], again["fence"]) == (first["batch_id"], first["tag"], 2)
    assert [p["pilot_id"] for p in again["pilots"]] == [p["pilot_id"] for p in first["pilots"]]
    late = await record(world, first)
    assert (late.status_code, "taken over" in late.text) == (409, True)
    assert (await record(world, again)).is_success
    assert (await record(world, again)).is_success
    done = await intend(world)
    assert (done["state"], done["pilots"], done["batch_id"]) == ("submitted", [], first["batch_id"])
    assert len(await world.sql("SELECT * FROM panda_pilot")) == 3


async def test_ten_at_once_with_one_key_give_one_batch(world: World) -> None:
    wanted = {"queue": "DEMO", "n_pilots": 2, "key": "k"}
    answers = await asyncio.gather(*(world.call("POST", "/v1/batch/intend", wanted) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    assert len(await world.sql("SELECT * FROM panda_batch")) == 1


@pytest.mark.parametrize("end", ["failed", "over"])
async def test_a_key_whose_pilots_are_over_gives_new_ones(world: World, end: str) -> None:
    first = await intend(world)
    if end == "failed":
        await record(world, first, state="failed", handles={}, reason="the site is full")
    else:
        await record(world, first)
        await world.sql("UPDATE panda_pilot SET ended_at = now()")
    again = await intend(world)
    assert again["batch_id"] != first["batch_id"]
    assert len(again["pilots"]) == 3


async def test_only_what_a_key_has_is_gone_on_with(world: World) -> None:
    wanted = {"queue": "DEMO", "n_pilots": 1, "key": "dag/run/task/-1", "only_known": True}
    for each in (wanted, wanted | {"key": ""}):
        assert (await world.call("POST", "/v1/batch/intend", each)).status_code == 404
    first = await intend(world)
    assert (await world.call("POST", "/v1/batch/intend", wanted)).status_code == 409, "it may still be going on"
    await let_go(world)
    again = await intend(world, n_pilots=1, only_known=True)
    assert [p["pilot_id"] for p in again["pilots"]] == [p["pilot_id"] for p in first["pilots"]]
    await record(world, again)
    assert (await intend(world, only_known=True))["state"] == "submitted"
    await world.sql("UPDATE panda_pilot SET ended_at = now()")
    assert (await world.call("POST", "/v1/batch/intend", wanted)).status_code == 404
    assert len(await world.sql("SELECT * FROM panda_batch")) == 1


async def test_an_uncertain_submission_can_be_taken_over_at_once(world: World) -> None:
    first = await intend(world)
    await record(world, first, state="uncertain", handles={})
    again = await world.good("POST", f"/v1/batch/{first['batch_id']}/take", {"hold_s": 5})
    assert (again["fence"], again["state"], len(again["pilots"])) == (2, "uncertain", 3)
    assert (await record(world, again)).is_success
    assert (await world.call("POST", f"/v1/batch/{first['batch_id']}/take", {})).status_code == 409


async def test_keys_of_two_clients_and_tags_of_two_installations_differ(world: World) -> None:
    one = await intend(world)
    headers = world.client_headers(name="another", pilots=True)
    wanted = {"queue": "DEMO", "n_pilots": 3, "key": "dag/run/task/-1"}
    other = await world.good("POST", "/v1/batch/intend", wanted, headers=headers)
    assert one["batch_id"] != other["batch_id"]
    assert one["tag"].startswith(f"ap-{world.services.issuer.installation}-")


async def test_pilots_of_a_probe_get_no_jobs(world: World) -> None:
    await world.submit()
    batch = await intend(world, n_pilots=1, purpose="probe", key="")
    (ticket,) = batch["pilots"]
    headers = {"Authorization": f"Bearer {ticket['token']}"}
    told = {"status": "started", "node": "wn", "probe": {"cores": 4}}
    answer = await world.http.post("/v1/pilot/update_worker_status", json=told, headers=headers)
    assert answer.json() == {"command": "drain"}
    offer = {"site_name": "DEMO", "node": "wn", "memory": 8000, "disk_space": 8000, "remaining_time": 7200}
    answer = await world.http.post("/v1/pilot/acquire_jobs", json=offer, headers=headers)
    assert (answer.json()["jobs"], answer.json()["command"]) == ([], "drain")
    path = f"/v1/batch/{batch['batch_id']}/pilot/{ticket['pilot_id']}"
    assert (await world.good("GET", path))["probe"] == {"cores": 4}
    assert (await world.call("GET", f"/v1/batch/{batch['batch_id']}/pilot/999999")).status_code == 404


async def test_a_pilot_that_speaks_outranks_the_element_that_says_it_is_gone(world: World) -> None:
    pilot = await world.pilot()
    await pilot.post("update_worker_status", {"status": "started", "node": "wn"})
    for word in ("failed", "unknown", "lost"):
        await observe(world, pilot.pilot_id, word)
        assert (await pilot_row(world, pilot.pilot_id))["ended_at"] is None
    await world.sql("UPDATE panda_pilot SET last_seen_at = now() - interval '1 h'")
    await observe(world, pilot.pilot_id, "failed", reason="killed by the site")
    row = await pilot_row(world, pilot.pilot_id)
    assert (row["state"], row["reason"], row["ended_at"] is None) == ("failed", "killed by the site", False)


async def test_a_pilot_with_a_leased_job_outranks_it_too(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    assert await pilot.acquire()
    await world.sql("UPDATE panda_pilot SET last_seen_at = now() - interval '1 h'")
    await observe(world, pilot.pilot_id, "failed")
    assert (await pilot_row(world, pilot.pilot_id))["ended_at"] is None
    await world.sql("UPDATE panda_job SET lease_expires_at = now() - interval '1 s'")
    await observe(world, pilot.pilot_id, "failed")
    assert (await pilot_row(world, pilot.pilot_id))["ended_at"] is not None


async def test_what_the_element_does_not_know_is_lost_only_after_long(world: World) -> None:
    pilot = await world.pilot()
    await observe(world, pilot.pilot_id, "unknown")
    row = await pilot_row(world, pilot.pilot_id)
    assert (row["ended_at"], row["missing_since"] is None) == (None, False)
    await observe(world, pilot.pilot_id, "queued")
    assert (await pilot_row(world, pilot.pilot_id))["missing_since"] is None
    await observe(world, pilot.pilot_id, "unknown")
    await world.sql("UPDATE panda_pilot SET missing_since = now() - interval '11 min'")
    await observe(world, pilot.pilot_id, "unknown")
    assert (await pilot_row(world, pilot.pilot_id))["state"] == "lost"
    await pilot.acquire()
    row = await pilot_row(world, pilot.pilot_id)
    assert (row["state"], row["ended_at"]) == ("started", None)


async def test_a_cancelled_pilot_is_over_when_it_is_gone_and_gets_no_job_after(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    await observe(world, pilot.pilot_id, "queued", asked_to_end=True)
    assert (await pilot_row(world, pilot.pilot_id))["ended_at"] is None
    await observe(world, pilot.pilot_id, "unknown")
    assert (await pilot_row(world, pilot.pilot_id))["state"] == "cancelled"
    assert await pilot.acquire() == []
    await pilot.post("update_worker_status", {"status": "finished", "node": "wn"})
    assert (await pilot_row(world, pilot.pilot_id))["state"] == "cancelled"


async def test_a_pilot_that_was_to_end_and_has_is_over_though_it_spoke_just_now(world: World) -> None:
    pilot = await world.pilot()
    await pilot.post("update_worker_status", {"status": "benched", "node": "wn", "reason": "no switch"})
    await observe(world, pilot.pilot_id, "unknown", asked_to_end=True)
    assert (await pilot_row(world, pilot.pilot_id))["ended_at"] is None
    await observe(world, pilot.pilot_id, "cancelled")
    assert (await pilot_row(world, pilot.pilot_id))["state"] == "cancelled"


async def test_another_queue_s_pilots_are_not_observed(world: World) -> None:
    other = await world.pilot("OTHER")
    await observe(world, other.pilot_id, "lost")
    assert (await pilot_row(world, other.pilot_id))["state"] == "intended"
    body = {"queue": "OTHER", "pilots": []}
    headers = world.client_headers(queues=("DEMO",), pilots=True)
    assert (await world.call("POST", "/v1/batch/observed", body, headers=headers)).status_code == 403
