"""Why is my job waiting: one sentence for each reason, from the code that matches."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from support.dispatcher import ALICE_DN, PILOT_DN, World, job_database, spec, template_database, world
from support.gateway import start_gateway
from support.pki import Pki, pki
from support.postgres import Database, postgres

from airpanda.__main__ import main

__all__ = ["job_database", "pki", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


async def why(world: World, panda_id: int) -> str:
    return str((await world.good("GET", f"/v1/job/{panda_id}/why"))["why"])


async def waiting(world: World, **changes: Any) -> int:
    return int((await world.submit(**changes))["first_panda_id"])


async def test_no_pilot_has_asked(world: World) -> None:
    job = await waiting(world)
    await world.pilots(3)
    assert await why(world, job) == "no pilot of queue DEMO asks for work; 3 are on their way there"


async def test_its_turn_has_not_come(world: World) -> None:
    pilot = await world.pilot()
    assert await pilot.acquire() == []
    await world.submit(5, jobs=[spec(f"j{n}", priority=2000) for n in range(5)])
    job = await waiting(world, n=3)
    assert (await why(world, job)).startswith("it waits for its turn: 5 jobs stand before it at DEMO; alice has 0 jobs")
    assert "7 jobs stand before it" in await why(world, job + 2)
    await pilot.acquire(n_jobs=5)
    assert "0 jobs stand before it at DEMO; alice has 5 jobs with pilots" in await why(world, job)


async def test_caps_and_bans(world: World) -> None:
    pilot = await world.pilot()
    job = await waiting(world, n=2)
    await world.sql("INSERT INTO panda_share (kind, name, max_jobs, set_by) VALUES ('owner', '*', 1, 'test')")
    await pilot.acquire()
    assert await why(world, job + 1) == "alice may have 1 jobs with pilots at once, and has them"
    await world.good("POST", "/v1/bans", {"dn": ALICE_DN, "reason": "a stolen key"})
    assert await why(world, job + 1) == f"{ALICE_DN} is banned: a stolen key"


async def test_no_pilot_there_may_retrieve_its_credential(world: World) -> None:
    await (await world.pilot()).acquire()
    other = "/O=Test Grid/CN=Robot: another factory"
    credential = await world.credential(retriever_dn=other)
    job = await waiting(world, credential_id=credential["credential_id"])
    assert await why(world, job) == (f"its owner's credential names {other} as retriever and the pilot is {PILOT_DN}")


async def test_the_queue_has_shrunk_or_is_gone(world: World) -> None:
    await (await world.pilot()).acquire()
    job = await waiting(world, jobs=[spec(memory_mib=7000)])
    world.queues["DEMO"] = replace(world.queues["DEMO"], slot=replace(world.queues["DEMO"].slot, memory_mib=4000))
    assert await why(world, job) == "it asks for 7000 MiB of memory and the pilot has 4000"
    world.queues["DEMO"] = replace(world.queues["DEMO"], is_online=False)
    assert "queue DEMO is offline" in await why(world, job)


async def test_its_credential_can_serve_no_more(world: World) -> None:
    job = await waiting(world)
    await world.sql("UPDATE panda_credential SET expires_at = now()")
    assert "ends before the job could" in await why(world, job)
    await world.sql("UPDATE panda_credential SET expires_at = now() + interval '1 day'")
    await world.sql("DELETE FROM panda_consent")
    assert "has not consented" in await why(world, job)
    await world.sql("UPDATE panda_credential SET state = 'revoked'")
    assert "was revoked" in await why(world, job)


async def test_what_does_not_wait(world: World) -> None:
    job = await waiting(world)
    pilot = await world.pilot()
    (taken,) = await pilot.acquire()
    assert await why(world, job) == f"it does not wait: it is sent, with pilot {pilot.pilot_id}"
    await world.sql("UPDATE panda_job SET lease_expires_at = now() + interval '20.4 s'")
    says = (
        f"it does not wait: it is sent, with pilot {pilot.pilot_id}, which is suspected: it has said nothing for"
        " ([0-9]+) s, and the job is given to another one ([0-9]+) s from now"
    )
    said = re.fullmatch(says, await why(world, job))
    assert said is not None
    unheard_s, left_s = map(int, said.groups())
    assert 130 <= unheard_s < 150
    assert 149 <= unheard_s + left_s <= 151, "the lease's length, whenever it is asked"
    await pilot.good_report(taken, "starting", "running", "finished")
    assert await why(world, job) == "it does not wait: it is finished"


async def test_it_is_told_to_those_who_may_see_the_job(world: World) -> None:
    job = await waiting(world)
    for panda_id, owners in ((job, ("bob",)), (job + 1, ("*",))):
        refused = await world.call("GET", f"/v1/job/{panda_id}/why", headers=world.client_headers(owners=owners))
        assert refused.status_code == 404


def test_the_command_says_it(
    job_database: Database, pki: Pki, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_gateway(job_database, pki, tmp_path) as gateway:
        token = tmp_path / "token"
        token.write_text(gateway.client_token())
        arguments = ["--dispatcher", gateway.url, "--token-file", str(token), "--ca-file", str(pki.demo.ca.cert)]
        assert main(["job", "why", "1", *arguments]) == 1
    assert "there is no job 1" in capsys.readouterr().err
