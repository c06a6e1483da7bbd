"""Lists, single jobs, bulk reports, and the API's description of itself."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from support.dispatcher import World, job_database, spec, template_database, ti, world
from support.postgres import postgres

from airpanda.core.errors import RequestError
from airpanda.db.pool import values_refused
from airpanda.dispatcher.problems import codes

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration


def report(job: dict[str, Any], status: str, **changes: Any) -> dict[str, Any]:
    return {
        "job_id": job["panda_id"],
        "attempt_nr": job["attempt_nr"],
        "token": job["token"],
        "job_status": status,
    } | changes


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?limit=0",
        "/v1/jobs?limit=1001",
        "/v1/jobs?before=0",
        "/v1/jobs?before=99999999999999999999",
        "/v1/jobs?status=done",
        "/v1/jobs?owner=a%00b",
        "/v1/jobs?owner=" + "a" * 300,
        "/v1/tasks?queue=a%2Fb",
        "/v1/job/get_status",
        "/v1/job/get_status?job_ids=x",
        "/v1/job/get_status?job_ids=0",
        "/v1/job/get_status?" + "&".join(["job_ids=1"] * 1001),
        "/v1/task/0",
        "/v1/task/x",
    ],
)
async def test_nonsense_is_the_callers_error(world: World, path: str) -> None:
    answer = await world.call("GET", path)
    assert (answer.status_code, answer.json()["code"]) == (422, "request")


async def test_lists_show_a_caller_its_owners_and_no_more(world: World) -> None:
    alices = await world.submit(2)
    bobs = await world.submit(1, owner="bob", queue="OTHER")
    bob = world.client_headers(owners=("bob",))
    ids = [alices["first_panda_id"], alices["first_panda_id"] + 1, bobs["first_panda_id"]]
    for query in ("", "?owner=bob", "?queue=OTHER", "?status=activated"):
        page = await world.good("GET", f"/v1/jobs{query}", headers=bob)
        assert ([job["panda_id"] for job in page["jobs"]], page["before"]) == (ids[2:], None)
    for path in ("/v1/jobs?owner=alice", "/v1/jobs?queue=DEMO"):
        assert (await world.good("GET", path, headers=bob))["jobs"] == []
    assert [task["task_id"] for task in (await world.good("GET", "/v1/tasks", headers=bob))["tasks"]] == [
        bobs["task_id"]
    ]
    assert (await world.good("GET", "/v1/tasks?owner=alice", headers=bob))["tasks"] == []
    assert (await world.call("GET", f"/v1/task/{alices['task_id']}", headers=bob)).status_code == 404
    query = "&".join(f"job_ids={each}" for each in (*ids, 10**9))
    seen = await world.good("GET", f"/v1/job/get_status?{query}", headers=bob)
    assert seen == [{"panda_id": ids[2], "attempt_nr": 1, "status": "activated"}]
    assert len(await world.good("GET", f"/v1/job/get_status?{query}")) == 3
    for verb, body in (("kill", {"reason": "mine"}), ("retry", None)):
        assert (await world.call("POST", f"/v1/job/{ids[0]}/{verb}", body, headers=bob)).status_code == 404


async def test_pages_follow_each_other_without_gap_or_repeat(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airpanda.jobs.views.PAGE_LOOKS_AT", 4)
    tasks = [await world.submit(5, owner=owner) for owner in ("alice", "bob", "alice")]
    for query, wanted in (("", 15), ("&owner=bob", 5), ("&status=failed", 0)):
        seen, before, pages = [], 2**63 - 1, 0
        while before is not None:
            page = await world.good("GET", f"/v1/jobs?limit=3&before={before}{query}")
            seen += [job["panda_id"] for job in page["jobs"]]
            before, pages = page["before"], pages + 1
            assert pages < 12
        assert len(seen) == wanted
        assert seen == sorted(set(seen), reverse=True)
    first = await world.good("GET", "/v1/tasks?limit=2")
    assert [task["task_id"] for task in first["tasks"]] == [tasks[2]["task_id"], tasks[1]["task_id"]]
    rest = await world.good("GET", f"/v1/tasks?limit=2&before={first['before']}")
    assert ([task["task_id"] for task in rest["tasks"]], rest["before"]) == ([tasks[0]["task_id"]], None)


async def test_a_panda_task_is_shown_with_its_counts(world: World) -> None:
    task = await world.submit(3)
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running", "finished")
    view = await world.good("GET", f"/v1/task/{task['task_id']}")
    assert (view["counts"], view["n_jobs"], view["done"]) == ({"activated": 2, "finished": 1}, 3, False)
    assert (view["submitted_by"], view["owner"]) == ("client:tests", "alice")


async def test_one_job_is_stopped_and_tried_again(world: World) -> None:
    first = (await world.submit(3, jobs=[spec("a", priority=2000), spec("b"), spec("c")]))["first_panda_id"]
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    assert (await world.call("POST", f"/v1/job/{first}/retry")).status_code == 409
    for _ in range(2):
        killed = await world.good("POST", f"/v1/job/{first}/kill", {"reason": "wrong input"})
        waiting = await world.good("POST", f"/v1/job/{first + 1}/kill", {"reason": "wrong input"})
        assert (killed["status"], waiting["status"]) == ("running", "cancelled")
    assert (await pilot.good_report(job, "running"))["command"] == "tobekilled"
    await pilot.good_report(job, "cancelled")
    for _ in range(2):
        again = await world.good("POST", f"/v1/job/{first}/retry")
        assert (again["status"], again["attempt_nr"]) == ("activated", 2)
    assert (await world.job(first + 2))["attempt_nr"] == 1, "a neighbour is left alone"
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running", "finished")
    finished = await world.call("POST", f"/v1/job/{first}/retry")
    assert (finished.status_code, "finished" in finished.json()["detail"]) == (409, True)
    assert (await world.good("POST", f"/v1/job/{first}/kill", {"reason": "late"}))["status"] == "finished"


async def test_a_pilot_sees_where_its_own_jobs_are(world: World) -> None:
    await world.submit(2)
    mine, other = await world.pilots(2)
    (job,) = await mine.acquire()
    await other.acquire()
    query = "&".join(f"job_ids={job['panda_id'] + n}" for n in range(3))
    path = f"/v1/pilot/get_job_status?{query}"
    seen = (await world.http.get(path, headers=mine.headers)).json()
    assert seen == [{"panda_id": job["panda_id"], "attempt_nr": 1, "status": "sent"}]
    await world.end_lease(job["panda_id"])
    await world.services.upkeep.expire()
    (seen,) = (await world.http.get(path, headers=mine.headers)).json()
    assert (seen["attempt_nr"], seen["status"]) == (2, "activated")


@pytest.mark.parametrize("jobs", [[], "x", [{}], [{"job_id": 1}]])
async def test_a_bulk_that_is_none_changes_nothing(world: World, jobs: Any) -> None:
    pilot = await world.pilot()
    assert (await pilot.post("update_jobs_bulk", {"job_list": jobs})).status_code == 422
    assert (await pilot.post("update_jobs_bulk", {"job_list": [], "harvester_id": "x"})).status_code == 422


async def test_each_report_of_a_bulk_is_answered_for_itself(world: World) -> None:
    await world.submit(6)
    pilot, other = await world.pilots(2)
    jobs = await pilot.acquire(n_jobs=5)
    (foreign,) = await other.acquire()
    for job in jobs[1:]:
        await pilot.good_report(job, "starting", "running")
    bulk = [
        report(jobs[3], "finished"),
        report(jobs[0], "finished"),  # it has not started
        report(jobs[1], "running"),
        report(foreign, "starting"),
        report(jobs[2], "failed", errors=[{"source": "exe", "code": 1, "diag": "no", "blame": "user"}]),
        report(jobs[4], "running") | {"token": "wrong"},
        report(jobs[1], "finished"),
    ]
    for _ in range(2):  # a repeat is harmless
        answer = await pilot.post("update_jobs_bulk", {"job_list": bulk})
        assert answer.status_code == 200, answer.text
        results = answer.json()
        assert [(each["job_id"], each["attempt_nr"]) for each in results] == [
            (each["job_id"], each["attempt_nr"]) for each in bulk
        ]
        codes = [each["problem"] and each["problem"]["code"] for each in results]
        assert codes[1] == "invalid-transition"
        assert (codes[3], codes[5]) == ("stale-report", "stale-report")
        assert (codes[0], codes[4], codes[6]) == (None, None, None)
        assert results[0]["reply"]["heartbeat_s"] == 30
    states = [(await world.job(job["panda_id"]))["status"] for job in (*jobs, foreign)]
    assert states == ["sent", "finished", "activated", "finished", "running", "sent"]
    log = await world.sql("SELECT panda_id, count(*) AS n FROM panda_job_status_log GROUP BY 1 ORDER BY 1")
    assert [row["n"] for row in log] == [2, 5, 5, 5, 4, 2]


@pytest.mark.parametrize(("plain", "single"), [(True, False), (False, False), (True, True), (False, True)])
async def test_what_postgresql_refuses_of_a_report_is_that_reports_error(
    world: World, plain: bool, single: bool
) -> None:
    await world.submit(3)
    pilot = await world.pilot()
    jobs = await pilot.acquire(n_jobs=3)
    for job in jobs:
        await pilot.good_report(job, "starting")
    connection = await asyncpg.connect(world.database.url())
    await connection.execute("ALTER TABLE panda_attempt ADD CONSTRAINT drill CHECK (log_tail <> 'too much')")
    await connection.close()
    wrong = report(jobs[1], "running", log_tail="too much", **({} if plain else {"credential_event": "renewed"}))
    if single:
        answer = await pilot.post("update_job", wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "request")
        return
    bulk = [report(jobs[0], "running"), wrong, report(jobs[2], "running", log_tail="well")]
    answer = await pilot.post("update_jobs_bulk", {"job_list": bulk})
    assert answer.status_code == 200, answer.text
    problems = [each["problem"] for each in answer.json()]
    assert [each and each["code"] for each in problems] == [None, "request", None]
    assert "CheckViolationError" in problems[1]["detail"]
    assert [(await world.job(job["panda_id"]))["status"] for job in jobs] == ["running", "starting", "running"]


async def test_an_argument_of_a_wrong_kind_is_no_absence_of_the_database(world: World) -> None:
    for argument in ("seven", 2**40):
        with pytest.raises(asyncpg.DataError, match="invalid input for query argument"):
            async with world.services.database.connection() as connection:
                await connection.fetchval("SELECT $1::int", argument)
        with pytest.raises(RequestError, match="cannot keep a value"), values_refused():
            async with world.services.database.connection() as connection:
                await connection.fetchval("SELECT $1::int", argument)


SPY = """
CREATE TABLE spied (panda_id bigint, setting text);
CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO spied VALUES (NEW.panda_id, current_setting('synchronous_commit')); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER spy AFTER UPDATE ON panda_job DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION spy();
"""


@pytest.mark.parametrize(("end", "durable"), [("running", "off"), ("finished", "on"), ("failed", "on")])
async def test_an_end_among_heartbeats_waits_for_the_disk(world: World, end: str, durable: str) -> None:
    await world.submit(3)
    pilot = await world.pilot()
    jobs = await pilot.acquire(n_jobs=3)
    for job in jobs:
        await pilot.good_report(job, "starting", "running")
    connection = await asyncpg.connect(world.database.url())
    try:
        await connection.execute(SPY)
    finally:
        await connection.close()
    ((before,),) = await world.sql("SHOW synchronous_commit")
    assert before == "on"
    bulk = [report(jobs[0], "running"), report(jobs[1], end), report(jobs[2], "running")]
    assert (await pilot.post("update_jobs_bulk", {"job_list": bulk})).is_success
    at_commit = {row["panda_id"]: row["setting"] for row in await world.sql("SELECT panda_id, setting FROM spied")}
    assert at_commit == {job["panda_id"]: how for job, how in zip(jobs, ["off", durable, "off"], strict=True)}


async def test_the_api_describes_itself_to_clients(world: World) -> None:
    document = await world.good("GET", "/v1/openapi.json")
    problem = {"$ref": "#/components/schemas/Problem"}
    assert document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"] == codes()
    assert {"stale-report", "invalid-transition", "not-authorised", "credential", "too-large"} <= set(codes())
    assert len(document["paths"]) > 40
    for path, item in document["paths"].items():
        for operation in item.values():
            refused = {code for code in operation["responses"] if code >= "400"}
            assert {"500", "503"} <= refused
            assert operation["security"] or path in ("/v1/health", "/v1/ready"), path
            for code in refused:
                content = operation["responses"][code]["content"]
                assert content["application/problem+json"]["schema"] == problem, (path, code)
    assert "HTTPValidationError" not in str(document)


async def test_progress_of_many_shows_a_caller_its_owners_and_no_more(world: World) -> None:
    mine = [(await world.submit(n))["task_id"] for n in (1, 2)]
    bobs = (await world.submit(1, owner="bob"))["task_id"]
    alice = world.client_headers(owners=("alice",))
    wanted = {"task_ids": [*mine, bobs, 10**9]}
    found = await world.good("POST", "/v1/tasks/progress", wanted, headers=alice)
    assert [(each["task_id"], each["total"], each["counts"], each["done"]) for each in found] == [
        (mine[0], 1, {"activated": 1}, False),
        (mine[1], 2, {"activated": 2}, False),
    ]


async def my_open(world: World) -> list[int]:
    page = await world.good("GET", "/v1/tasks?mine=true&open=true", headers=world.client_headers())
    return [task["task_id"] for task in page["tasks"]]


@pytest.mark.parametrize("verb", ["job", "task"])
@pytest.mark.parametrize("running", [False, True])
async def test_no_airflow_task_cancels_what_a_person_re_opens_after_its_end(
    world: World, verb: str, running: bool
) -> None:
    """The watchdog's list leaves it out, and a kill in the name of the ended try stops nothing; a clear adopts it."""
    credential = (await world.credential())["credential_id"]
    task = await world.submit(2, key="k", credential_id=credential)
    number, first = task["task_id"], task["first_panda_id"]
    if running:  # what its pilot was told to stop, and has not yet
        pilot = await world.pilot()
        (job,) = await pilot.acquire()
        await pilot.good_report(job, "starting", "running")
    kill = {"reason": "the Airflow task is failed", "ti": ti()}
    await world.good("POST", f"/v1/task/{number}/kill", kill)
    person = world.client_headers(name="alice")
    await world.good("POST", f"/v1/{verb}/{first if verb == 'job' else number}/retry", headers=person)
    assert await my_open(world) == []
    late = await world.good("POST", f"/v1/task/{number}/kill", kill)
    assert (late["counts"]["activated"], "another" in late["note"]) == (1 if verb == "job" else 2, True)
    again = await world.submit(2, key="k", credential_id=credential, ti=ti(2))
    assert (again["task_id"], again["resumed"], await my_open(world)) == (number, int(verb == "job"), [number])
    stopped = await world.good("POST", f"/v1/task/{number}/kill", kill | {"ti": ti(2)})
    assert stopped["counts"] == {"cancelled": 2}


@pytest.mark.parametrize("verb", ["job", "task"])
async def test_what_is_re_opened_while_the_airflow_task_waits_stays_its_own(world: World, verb: str) -> None:
    task = await world.submit(2)
    number, first = task["task_id"], task["first_panda_id"]
    await world.good("POST", f"/v1/job/{first}/kill", {"reason": "wrong input"})
    await world.good("POST", f"/v1/{verb}/{first if verb == 'job' else number}/retry")
    assert await my_open(world) == [number]
    ended = await world.good("POST", f"/v1/task/{number}/kill", {"reason": "on_kill", "ti": ti()})
    assert ended["counts"] == {"cancelled": 2}


async def test_a_client_lists_what_it_has_submitted_and_is_open(world: World) -> None:
    done = await world.submit(1)
    pilot = await world.pilot()
    for job in await pilot.acquire():
        await pilot.good_report(job, "starting", "running", "finished")
    there = await world.submit(1)
    another = world.client_headers(name="another")
    theirs = await world.good("POST", "/v1/creds/register", world.registration("bob"), headers=another)
    await world.submit(1, owner="bob", headers=another, credential_id=theirs["credential_id"])
    page = await world.good("GET", "/v1/tasks?mine=true&open=true", headers=world.client_headers())
    assert [task["task_id"] for task in page["tasks"]] == [there["task_id"]]
    page = await world.good("GET", "/v1/tasks?mine=true", headers=world.client_headers())
    assert [task["task_id"] for task in page["tasks"]] == [there["task_id"], done["task_id"]]
    closed = await world.good("GET", f"/v1/task/{done['task_id']}/jobs?status=failed&status=closed")
    assert closed == []
    assert len(await world.good("GET", f"/v1/task/{done['task_id']}/jobs?status=finished")) == 1
