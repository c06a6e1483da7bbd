"""A job finishes with the outputs that it declares, or it has not finished: what the pilot says does not count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.dispatcher import Pilot, World, job_database, spec, template_database, world
from support.postgres import postgres

from airpanda.jobs.store import JobStore

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
DEST = "https://se.example/d/"
OUTPUTS = [{"lfn": "a"}, {"lfn": "b"}]
DIGEST = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"
STORED = {"lfn": "far", "url": f"{DEST}far", "size": 3, "sha256": DIGEST, "adler32": "024d0127"}


async def started(world: World, outputs: list[dict[str, Any]], **changes: Any) -> tuple[Pilot, dict[str, Any]]:
    await world.submit(jobs=[spec(outputs=outputs, **changes)])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    return pilot, job


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The jobs whose reports were decided alone."""
    seen: list[int] = []
    apply = JobStore._apply

    async def counted(self: JobStore, connection: Any, lease: Any, report: Any) -> Any:
        seen.append(lease.panda_id)
        return await apply(self, connection, lease, report)

    monkeypatch.setattr(JobStore, "_apply", counted)
    return seen


@pytest.mark.parametrize("there", [(), ("a",), ("payload.log",), ("a", "payload.log", "pilot-log.tgz")])
async def test_without_its_outputs_a_job_has_not_finished(world: World, there: tuple[str, ...]) -> None:
    pilot, job = await started(world, OUTPUTS, max_attempt=1)
    for lfn in there:
        assert (await pilot.put(job, lfn, b"x")).is_success
    missing = [lfn for lfn in ("a", "b") if lfn not in there]
    said = f"the pilot said finished, and {len(missing)} declared outputs are on no record: {', '.join(missing)}"
    for _ in range(2):  # a repeat is told the same
        reply = await pilot.good_report(job, "finished")
        assert (reply["refused"], reply["command"]) == (said, "")
    view = await world.job(job["panda_id"])
    assert (view["status"], view["attempt_nr"], len(view["attempts"])) == ("activated", 2, 1), (
        "another attempt, uncharged"
    )
    (attempt,) = view["attempts"]
    error = attempt["errors"][0]
    assert (attempt["status"], error["source"], error["code"], error["blame"]) == ("failed", "ddm", 200, "site")
    assert error["diag"] == said
    assert "retry elsewhere" in attempt["why"]
    assert "cost the user none" in attempt["why"]
    ((failed,),) = await world.sql("SELECT jobs_failed FROM panda_pilot WHERE pilot_id = $1", pilot.pilot_id)
    assert failed == 1, "it counts against the node"


async def test_outputs_of_an_earlier_attempt_are_not_those_of_this_one(world: World) -> None:
    pilot, job = await started(world, OUTPUTS)
    for lfn in ("a", "b"):
        assert (await pilot.put(job, lfn, b"x")).is_success
    await world.end_lease(job["panda_id"])
    assert await world.services.upkeep.expire() == [job["panda_id"]]
    await world.sql("UPDATE panda_job SET avoid_until = now()")
    (again,) = await pilot.acquire()
    await pilot.good_report(again, "starting", "running")
    assert (await pilot.put(again, "b", b"x")).is_success
    assert "1 declared outputs are on no record: a" in (await pilot.good_report(again, "finished"))["refused"]


async def test_with_its_outputs_it_finishes_in_company_and_without_any_too(world: World, alone: list[int]) -> None:
    """Nothing that is in order is decided alone, where it would cost a transaction of its own."""
    pilot, job = await started(world, OUTPUTS)
    (other,) = [await started(world, [])]
    for lfn in ("a", "b", "payload.log"):
        assert (await pilot.put(job, lfn, b"x")).is_success
    for who, what in ((pilot, job), other):
        assert (await who.good_report(what, "finished"))["refused"] == ""
        assert (await world.job(what["panda_id"]))["status"] == "finished"
    assert alone == []


async def test_outputs_elsewhere_are_on_record_by_the_report_that_brings_them(world: World) -> None:
    pilot, job = await started(world, [{"lfn": "far", "destination": DEST}, {"lfn": "a"}])
    assert (await pilot.put(job, "a", b"x")).is_success
    assert (await pilot.good_report(job, "finished", stored=[STORED]))["refused"] == ""
    assert (await world.job(job["panda_id"]))["status"] == "finished"

    pilot, job = await started(world, [{"lfn": "far", "destination": DEST}])
    await pilot.good_report(job, "holding", stored=[STORED])
    assert (await pilot.good_report(job, "finished"))["refused"] == ""

    pilot, job = await started(world, [{"lfn": "far", "destination": DEST}])
    assert (await pilot.good_report(job, "finished"))["refused"].endswith("are on no record: far")
    assert (await world.job(job["panda_id"]))["status"] == "activated"


async def test_reports_that_go_together_or_in_a_bulk_are_judged_each_for_itself(world: World) -> None:
    outputs = [{"lfn": "a"}]
    await world.submit(jobs=[spec(f"j{n}", outputs=outputs if n % 2 else []) for n in range(12)])
    pilot = await world.pilot()
    jobs = await pilot.acquire(n_jobs=12)
    for job in jobs:
        await pilot.good_report(job, "starting", "running")
    whole = [job for job in jobs if job["spec"]["outputs"]][::2]
    for job in whole:
        assert (await pilot.put(job, "a", b"x")).is_success
    keys = ("job_id", "attempt_nr", "token")
    half, rest = jobs[:6], jobs[6:]
    bulk = [
        {**dict(zip(keys, (job["panda_id"], job["attempt_nr"], job["token"]), strict=True)), "job_status": "finished"}
        for job in rest
    ]
    replies = await asyncio.gather(*(pilot.good_report(job, "finished") for job in half))
    results = (await pilot.post("update_jobs_bulk", {"job_list": bulk})).json()
    refused = [reply["refused"] for reply in [*replies, *(each["reply"] for each in results)]]
    for job, said in zip([*half, *rest], refused, strict=True):
        good = not job["spec"]["outputs"] or job in whole
        assert (said == "") is good
        assert (await world.job(job["panda_id"]))["status"] == ("finished" if good else "activated")


async def test_who_was_told_to_stop_and_has_not_all_of_it_is_cancelled(world: World) -> None:
    pilot, job = await started(world, OUTPUTS)
    await world.good("POST", f"/v1/job/{job['panda_id']}/kill", {"reason": "enough"})
    for _ in range(2):
        assert "2 declared outputs" in (await pilot.good_report(job, "finished"))["refused"]
    assert (await world.job(job["panda_id"]))["status"] == "cancelled"


async def test_a_job_that_has_not_run_cannot_end_so(world: World) -> None:
    await world.submit(jobs=[spec(outputs=OUTPUTS)])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    refused = await pilot.report(job, "finished")
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid-transition")
    assert (await world.job(job["panda_id"]))["status"] == "sent"
