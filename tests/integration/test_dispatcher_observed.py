"""What reports bring beside the status, and what jobs ask of nodes: features, shared scripts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from support.dispatcher import World, job_database, spec, template_database, world
from support.postgres import postgres

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
BOB = ("bob",)


def sample(at_s: float, **changes: float) -> dict[str, float]:
    return {
        "at_s": at_s,
        "cpu_s": 1,
        "rss_mib": 2,
        "read_mib": 3,
        "written_mib": 4,
        "disk_mib": 5,
        "processes": 6,
    } | changes


async def test_only_the_lease_holder_adds_anything(world: World) -> None:
    task = await world.submit(1)
    pilot, other = await world.pilots(2)
    (job,) = await pilot.acquire()
    for who, changed in ((other, job), (pilot, job | {"token": "wrong"}), (pilot, job | {"attempt_nr": 2})):
        answer = await who.report(changed, "starting", samples=[sample(1)], debug_output="mine")
        assert (answer.status_code, answer.json()["code"]) == (409, "stale-report")
    assert await world.good("GET", f"/v1/job/{task['first_panda_id']}/samples") == []


async def test_debug_is_for_those_who_may_see_the_job(world: World) -> None:
    path = f"/v1/job/{(await world.submit())['first_panda_id']}"
    bob = world.client_headers(owners=BOB)
    for method, what, body in (
        ("POST", "debug", {"what": "ps"}),
        ("GET", "debug", None),
        ("GET", "samples", None),
        ("GET", "pilot_log", None),
    ):
        assert (await world.call(method, f"{path}/{what}", body, headers=bob)).status_code == 404
    for body in ({"what": "rm"}, {}, {"what": "ps", "extra": 1}, {"what": "ps; id"}):
        assert (await world.call("POST", f"{path}/debug", body)).status_code == 422
    waiting = await world.call("POST", f"{path}/debug", {"what": "ps"})
    assert (waiting.status_code, "not with a pilot" in waiting.json()["detail"]) == (409, True)
    assert (await world.call("GET", f"{path}/debug")).status_code == 404


async def test_a_question_is_asked_until_it_is_answered(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    path = f"/v1/job/{job['panda_id']}/debug"
    for _ in range(2):
        asked = await world.call("POST", path, {"what": "ps"})
        assert (asked.status_code, asked.json()["attempt_nr"]) == (202, 1)
    bare = await pilot.good_report(job, "running")
    full = await pilot.good_report(job, "running", use={"wall_s": 1.0})
    assert (bare["debug"], full["debug"]) == ("ps", "ps")
    assert "not answered" in (await world.call("GET", path)).json()["detail"]
    key = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"
    reply = await pilot.good_report(job, "running", debug_output=f"PID 1\x1b[2J\x00\n{key}\n")
    assert reply["debug"] == ""
    answer = await world.call("GET", path)
    assert (answer.status_code, answer.text) == (200, "PID 1\ufffd[2J\ufffd\n[private key removed]\n")
    await pilot.good_report(job, "running", debug_output="unasked")
    assert "unasked" not in (await world.call("GET", path)).text
    await world.good("POST", path, {"what": "ls"})
    assert (await pilot.good_report(job, "running"))["debug"] == "ls"


async def test_a_question_dies_with_its_attempt(world: World) -> None:
    await world.submit()
    first, second = await world.pilots(2)
    (job,) = await first.acquire()
    await first.good_report(job, "starting", "running")
    await world.good("POST", f"/v1/job/{job['panda_id']}/debug", {"what": "tail"})
    await world.end_lease(job["panda_id"])
    await world.services.upkeep.expire()
    (again,) = await second.acquire()
    assert (await second.good_report(again, "starting", "running", debug_output="of the second"))["debug"] == ""
    assert "not answered" in (await world.call("GET", f"/v1/job/{job['panda_id']}/debug")).json()["detail"]


async def test_samples_are_kept_once_and_thinned_evenly(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    too_many = await pilot.report(job, "running", samples=[sample(n) for n in range(241)])
    assert too_many.status_code == 422
    path = f"/v1/job/{job['panda_id']}/samples"
    for _ in range(2):
        await pilot.good_report(job, "running", samples=[sample(1.5), sample(0.5, cpu_s=9)])
    assert [(each["at_s"], each["cpu_s"]) for each in await world.good("GET", path)] == [(0.5, 9), (1.5, 1)]
    for start in range(0, 2000, 200):
        await pilot.good_report(job, "running", samples=[sample(10 + start + n) for n in range(200)])
    times = [each["at_s"] for each in await world.good("GET", path)]
    assert len(times) <= 500
    assert (times[0], times[-1]) == (0.5, 2009)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) <= 20, "no part of the run is left out"


async def test_the_launchers_record_stays_with_the_attempt(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    bad = await pilot.report(job, "running", launcher={"uid": 0})
    assert bad.status_code == 422
    launcher = {"fqans": ["/test/Role=production"], "serial": "17", "launcher": "socket", "mapping": "own"}
    await pilot.good_report(job, "running", launcher=launcher)
    await pilot.good_report(job, "running", use={"wall_s": 2.0})
    (attempt,) = (await world.job(job["panda_id"]))["attempts"]
    assert launcher.items() <= attempt["launcher"].items()


async def test_a_node_without_a_feature_gets_no_job_that_needs_it(world: World) -> None:
    needy = spec("needy", features=["cvmfs", "gpu"], priority=2000)
    task = await world.submit(jobs=[needy, spec("plain")])
    pilot = await world.pilot()
    (plain,) = await pilot.acquire(n_jobs=5, features=["gpu"])
    assert plain["panda_id"] == task["first_panda_id"] + 1
    (taken,) = await pilot.acquire(n_jobs=5, features=["avx2", "gpu", "cvmfs"])
    assert taken["panda_id"] == task["first_panda_id"]


async def test_a_pilot_gets_no_job_of_an_owner_it_leaves_alone(world: World) -> None:
    alice = await world.submit(2)
    bob = await world.submit(1, owner="bob")
    dn = (await world.sql("SELECT owner_dn FROM panda_task WHERE task_id = $1", alice["task_id"]))[0]["owner_dn"]
    pilot = await world.pilot()
    (job,) = await pilot.acquire(n_jobs=5, avoid_owners=[dn])
    assert job["panda_id"] == bob["first_panda_id"]
    assert len(await pilot.acquire(n_jobs=5, avoid_owners=[dn + "x", "/O=Test Grid/CN=Nobody"])) == 2


async def test_shared_scripts_reach_every_job_and_own_ones_win(world: World) -> None:
    credential = (await world.credential())["credential_id"]
    jobs = [spec("a"), spec("b", scripts={"run.sh": "own"})]
    whole: dict[str, Any] = {
        "jobs": jobs,
        "scripts": {"run.sh": "shared", "lib.sh": "lib"},
        "key": "k",
        "credential_id": credential,
    }
    await world.submit(**whole)
    assert not (await world.submit(**whole))["created"]
    task_key = whole.pop("key")
    changed = await world.call(
        "POST",
        "/v1/job/submit",
        {"task_key": task_key, "task_name": "a-task", "owner": "alice", "queue": "DEMO"}
        | whole
        | {"scripts": {}, "ti": {"dag_id": "a_dag", "run_id": "r", "task_id": "t"}},
    )
    assert (changed.status_code, changed.json()["code"]) == (409, "conflict")
    first, second = await (await world.pilot()).acquire(n_jobs=2)
    assert first["spec"]["scripts"] == {"run.sh": "shared", "lib.sh": "lib"}
    assert second["spec"]["scripts"] == {"run.sh": "own", "lib.sh": "lib"}
    assert len(await world.sql("SELECT * FROM panda_task_scripts")) == 1


STORED = {"lfn": "out", "url": "https://se.example/d/out", "size": 3, "adler32": "024d0127", "sha256": "0" * 64}


@pytest.mark.parametrize(
    "change",
    [
        {"lfn": "here"},
        {"lfn": "unknown"},
        {"url": "https://evil.example/out"},
        {"url": "file:///d/out"},
        {"url": "https://se.example/d/../of/another"},
        {"lfn": "flat", "url": "https://se.example/flat.of.another"},
    ],
)
async def test_an_output_lies_only_where_its_job_wanted_it(world: World, change: dict[str, Any]) -> None:
    outputs = [
        {"lfn": "out", "destination": "https://se.example/d/"},
        {"lfn": "flat", "destination": "https://se.example/flat"},
        {"lfn": "here"},
    ]
    await world.submit(jobs=[spec(outputs=outputs)])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    refused = await pilot.report(job, "running", stored=[STORED | change])
    assert refused.status_code == 400
    assert (await pilot.put(job, "out", b"abc")).status_code == 404
    assert await world.sql("SELECT * FROM panda_file") == []


async def test_outputs_elsewhere_are_listed_and_point_there(world: World) -> None:
    outputs = [{"lfn": "out", "destination": "https://se.example/d/"}, {"lfn": "here"}]
    await world.submit(jobs=[spec(outputs=outputs)])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    put = await pilot.put(job, "here", b"abc")
    assert put.json()["adler32"] == "024d0127"
    for _ in range(2):
        await pilot.good_report(job, "finished", stored=[STORED])
    here, out = (await world.job(job["panda_id"]))["outputs"]
    assert (out["source"], out["url"], out["adler32"]) == (STORED["url"], STORED["url"], STORED["adler32"])
    assert (here["source"], here["url"]) == (f"panda:{job['panda_id']}/here", "")
    away = await world.call("GET", f"/v1/file/{job['panda_id']}/out")
    assert (away.status_code, STORED["url"] in away.json()["detail"]) == (409, True)


async def test_the_pilots_own_log_is_kept_beside_the_payloads(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    path = f"/v1/job/{job['panda_id']}/pilot_log"
    assert (await world.call("GET", path)).status_code == 404
    await pilot.good_report(job, "starting", "running")
    assert (await pilot.put(job, "pilot-log.tgz", b"\x1f\x8b")).is_success
    assert (await pilot.put(job, "payload.log", b"hello")).is_success
    await pilot.good_report(job, "finished")
    log = await world.call("GET", path)
    assert (log.status_code, log.content) == (200, b"\x1f\x8b")
    assert log.headers["content-type"] == "application/octet-stream"
    assert (await world.job(job["panda_id"]))["outputs"] == []
