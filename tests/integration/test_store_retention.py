"""What has ended goes into the archive and in the end away: shown as before, then said to be gone; nothing is lost."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.dispatcher import Pilot, World, job_database, spec, template_database, ti, world
from support.gateway import ROOT
from support.postgres import postgres

from airpanda.core.clock import utcnow
from airpanda.core.errors import ServiceError
from airpanda.db.sql import anywhere
from airpanda.jobs import retention as module
from airpanda.jobs.retention import Keep, Retention

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
HERE = ("panda_job", "panda_job_spec", "panda_attempt", "panda_job_status_log", "panda_sample")
SITE_ERROR = {"source": "pilot", "code": 1099, "diag": "stage-in", "blame": "site"}
SAMPLE = {"cpu_s": 1.0, "rss_mib": 2.0, "read_mib": 0.5, "written_mib": 0.0, "disk_mib": 1.0, "processes": 3}
WEEK = Keep(timedelta(days=7), timedelta(days=365), timedelta(days=730))


async def age(world: World, days: int) -> None:
    """As if everything until now had happened so long ago."""
    for table, columns in {
        "panda_job": ("changed_at",),
        "panda_task": ("created_at", "ended_at"),
        "panda_batch": ("created_at",),
        "panda_pilot": ("ended_at",),
        "panda_credential": ("expires_at",),
    }.items():
        moved = ", ".join(f"{name} = {name} - interval '{days} days'" for name in columns)
        await world.sql(f"UPDATE {table} SET {moved}")


def tidier(world: World, keep: Keep = WEEK) -> Retention:
    return Retention(world.services.database, world.settings.file_store, keep)


async def put_away(world: World, keep: Keep = WEEK) -> None:
    retention = tidier(world, keep)
    while await retention.step():
        pass


async def rows_left(world: World) -> dict[str, int]:
    return {table: (await world.sql(f"SELECT count(*) FROM {table}"))[0][0] for table in HERE}


async def a_whole_life(world: World, pilot: Pilot, **changes: Any) -> dict[str, Any]:
    """A job with a failed attempt, then a good one with samples, an output and both logs."""
    task = await world.submit(jobs=[spec("job", outputs=[{"lfn": "hist.json", "access": "vo"}])], **changes)
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "failed", errors=[SITE_ERROR])
    (job,) = await pilot.acquire()
    launcher = {"dn": "/O=Test Grid/CN=Alice Analyst", "launcher": "socket", "mapping": "own"}
    await pilot.good_report(job, "starting", "running", account_name="alice", account_uid=1000, launcher=launcher)
    await pilot.good_report(job, "running", samples=[SAMPLE | {"at_s": n} for n in (1.0, 2.5)])
    for lfn, content in (("hist.json", b"{}"), ("payload.log", b"event 1\n"), ("pilot-log.tgz", b"a tar")):
        assert (await pilot.put(job, lfn, content)).status_code == 201
    await pilot.good_report(job, "finished", trans_exit_code=0)
    return task


async def seen(world: World, task: dict[str, Any]) -> dict[str, Any]:
    """Everything that a person can look at."""
    job, number = f"/v1/job/{task['first_panda_id']}", task["task_id"]
    texts = [f"{job}{end}" for end in ("", "/why", "/log", "/pilot_log", "/samples")]
    texts += [f"/v1/task/{number}{end}" for end in ("/progress", "/jobs", "/jobs?status=finished")]
    texts += [f"/v1/file/{task['first_panda_id']}/hist.json", f"/v1/job/get_status?job_ids={task['first_panda_id']}"]
    texts += ["/v1/jobs", "/v1/jobs?status=finished&owner=alice&queue=DEMO", "/v1/jobs?limit=1"]
    return {
        path: (response.status_code, response.text) for path in texts for response in [await world.call("GET", path)]
    }


async def test_archived_jobs_are_seen_as_before(world: World) -> None:
    pilot = await world.pilot()
    task = await a_whole_life(world, pilot)
    await age(world, 8)
    recent = await world.submit()
    before = await seen(world, task)
    assert {status for status, _ in before.values()} == {200}
    await put_away(world)
    assert (await rows_left(world))["panda_job"] == 1, "what is recent stays"
    assert (await world.sql("SELECT panda_id FROM panda_job_spec"))[0][0] == recent["first_panda_id"]
    assert await seen(world, task) == before
    view = await world.good("GET", f"/v1/task/{task['task_id']}")
    assert view["archived_at"]
    assert view["counts"] == {"finished": 1}
    (row,) = await world.sql("SELECT log FROM panda_archived_job")
    for text in ("finished", "stage-in", f"pilot:{pilot.pilot_id}"):
        assert text in row["log"]


@pytest.mark.parametrize(("table", "source"), [("panda_attempt", anywhere.ATTEMPT), ("panda_sample", anywhere.SAMPLE)])
async def test_no_column_is_forgotten(world: World, table: str, source: str) -> None:
    """A column that is added to a table is added to what is read of the archive."""
    connection = await asyncpg.connect(world.database.url())
    try:
        names = [
            {each.name for each in (await connection.prepare(f"SELECT * FROM {found} AS x")).get_attributes()}
            for found in (table, source)
        ]
    finally:
        await connection.close()
    assert names[0] == names[1]


async def test_what_is_on_its_way_to_the_archive_is_not_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    task = await world.submit(5)
    await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "no use"})
    await age(world, 8)
    retention = tidier(world)
    await retention.step()  # two of five are in the archive
    last = task["first_panda_id"] + 4
    for path in (f"/v1/task/{task['task_id']}/retry", f"/v1/job/{last}/retry"):
        refused = await world.call("POST", path)
        assert (refused.status_code, refused.json()["code"]) == (409, "archived")
    while await retention.step():
        pass
    (row,) = await world.sql("SELECT in_archive FROM panda_task")
    assert row["in_archive"]


async def test_archived_outputs_are_inputs_still(world: World) -> None:
    task = await a_whole_life(world, await world.pilot())
    await age(world, 8)
    await world.sql("UPDATE panda_credential SET expires_at = now() + interval '1 d'")
    await put_away(world)
    source = f"panda:{task['first_panda_id']}/hist.json"
    await world.submit(jobs=[spec(inputs=[{"lfn": "in.json", "source": source}])])
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    assert (await pilot.get_input(job, "in.json")).content == b"{}"


@pytest.mark.parametrize("state", ["activated", "sent", "recent"])
async def test_what_is_not_final_or_is_recent_stays_whole(world: World, state: str) -> None:
    await world.submit(3)
    pilot = await world.pilot()
    for job in await pilot.acquire(n_jobs={"activated": 2}.get(state, 3)):
        if state == "recent" or job["panda_id"] < 3:
            await pilot.good_report(job, "running", "finished")
    await age(world, 6 if state == "recent" else 20)
    before = await rows_left(world)
    assert not await tidier(world).would()
    assert not await tidier(world).step()
    assert await rows_left(world) == before


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM panda_job WHERE panda_id = 2", "not final"),
        ("DELETE FROM panda_job WHERE panda_id = 1", "into the archive only"),
        ("DELETE FROM panda_job_status_log WHERE panda_id = 1", "only grows"),
        ("DELETE FROM panda_credential_audit", "younger than 90 days"),
        ("UPDATE panda_credential_audit SET at = at - interval '1 year'", "only grows"),
    ],
)
async def test_the_database_lets_nothing_else_go(world: World, statement: str, says: str) -> None:
    await world.submit(2)
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "running", "finished")
    before = await rows_left(world)
    with pytest.raises(asyncpg.PostgresError, match=says):
        await world.sql(statement)
    assert await rows_left(world) == before


@pytest.mark.parametrize("days", [0, 366])
async def test_the_archive_is_not_changed_and_nothing_recent_leaves_it(world: World, days: int) -> None:
    task = await a_whole_life(world, await world.pilot())
    await age(world, 8)
    await put_away(world)
    await age(world, days)
    if not days:
        await world.sql("UPDATE panda_task SET ended_at = now() - interval '23 h'")
    statements = ["UPDATE panda_archived_job SET status = 'failed'", "TRUNCATE panda_archived_job"]
    for statement in statements + (["DELETE FROM panda_archived_job"] if not days else []):
        with pytest.raises(asyncpg.PostgresError, match=r"only grows|a day and more after its end"):
            await world.sql(statement)
    await world.sql("UPDATE panda_task SET in_archive = false")
    with pytest.raises(asyncpg.PostgresError, match="only with its panda task"):
        await world.sql("DELETE FROM panda_archived_job")
    await world.sql("UPDATE panda_task SET in_archive = true")
    await put_away(world)
    gone = await world.call("GET", f"/v1/job/{task['first_panda_id']}")
    assert gone.status_code == (410 if days else 200)


async def test_a_log_may_go_only_as_far_as_the_archive_has_it(world: World) -> None:
    await a_whole_life(world, await world.pilot())
    await world.sql(
        "INSERT INTO panda_archived_job SELECT panda_id, task_id, 'x', queue, status, 1, 1, 1, '', now(), '', '[]',"
        " '[{\"log_id\": 1}]', '[]' FROM panda_job"
    )
    with pytest.raises(asyncpg.PostgresError, match="not in the archive stays"):
        await world.sql("DELETE FROM panda_job_status_log")
    await world.sql("DELETE FROM panda_job_status_log WHERE log_id = 1")


async def test_the_archive_is_for_looking_only(world: World) -> None:
    pilot = await world.pilot()
    task = await world.submit(3, key="k")
    jobs = await pilot.acquire(n_jobs=3)
    await pilot.good_report(jobs[0], "running", "finished")
    await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "no use"})
    for job in jobs[1:]:
        await pilot.report(job, "cancelled")
    await age(world, 8)
    await put_away(world)
    first = task["first_panda_id"]
    again = {"task_key": "k", "task_name": "a-task", "owner": "alice", "queue": "DEMO", "ti": ti(2), "jobs": [
        spec(f"job-{i}") for i in range(3)]}  # fmt: skip
    fresh = (await world.credential())["credential_id"]
    for path, body in (
        (f"/v1/task/{task['task_id']}/retry", None),
        ("/v1/job/submit", again | {"credential_id": fresh}),
    ):
        refused = await world.call("POST", path, body)
        assert (refused.status_code, refused.json()["code"]) == (409, "archived")
        assert "2 jobs that did not finish" in refused.json()["detail"]
    refused = await world.call("POST", f"/v1/job/{first + 1}/retry")
    assert (refused.status_code, "archive" in refused.json()["detail"]) == (409, True)
    killed = await world.good("POST", f"/v1/job/{first + 1}/kill", {"reason": "again"})
    assert killed["status"] == "cancelled"
    counts = (await world.good("POST", f"/v1/task/{task['task_id']}/kill", {"reason": "again"}))["counts"]
    assert counts == {"finished": 1, "cancelled": 2}
    late = await pilot.report(jobs[0], "running")
    assert (late.status_code, late.json()["code"]) == (409, "stale-report")
    other = again | {"credential_id": fresh, "generation": 1, "start_over": "always", "ti": ti(3)}
    started = await world.good("POST", "/v1/job/submit", other)
    assert (started["created"], started["first_panda_id"] > first + 2) == (True, True)


async def test_a_finished_task_is_known_by_its_key_in_the_archive(world: World) -> None:
    pilot = await world.pilot()
    task = await world.submit(2, key="k")
    for job in await pilot.acquire(n_jobs=2):
        await pilot.good_report(job, "running", "finished")
    await age(world, 8)
    await put_away(world)
    again = await world.submit(2, key="k", ti=ti(2))
    assert (again["task_id"], again["created"], again["resumed"]) == (task["task_id"], False, 0)
    assert await world.good("GET", "/v1/tasks?mine=true&open=true") == {"tasks": [], "before": None}


async def test_who_opens_a_task_meanwhile_keeps_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries, adoptions and retention all take the panda task first: one of them wins, and whole."""
    monkeypatch.setattr(module, "BATCH", 2)
    pilot = await world.pilot()
    tasks = [await world.submit(5) for _ in range(6)]
    for job in await pilot.acquire(n_jobs=30):
        await pilot.report(job, "failed", errors=[{"source": "exe", "code": 1, "diag": "x", "blame": "user"}])
    await world.sql("UPDATE panda_job SET status = 'closed', command = '' WHERE status = 'activated'")
    await age(world, 8)

    async def retry(task: dict[str, Any]) -> int:
        return (await world.call("POST", f"/v1/task/{task['task_id']}/retry")).status_code

    first, second = tidier(world), tidier(world)

    async def tidy(retention: Retention) -> None:
        for _ in range(60):
            await retention.step()

    *codes, _, _ = await asyncio.gather(*map(retry, tasks), tidy(first), tidy(second))
    for code, task in zip(codes, tasks, strict=True):
        here = await world.sql("SELECT status FROM panda_job WHERE task_id = $1", task["task_id"])
        away = await world.sql("SELECT status FROM panda_archived_job WHERE task_id = $1", task["task_id"])
        counts = (await world.good("GET", f"/v1/task/{task['task_id']}/progress"))["counts"]
        if code == 200:
            assert ([row["status"] for row in here], away, counts) == (["activated"] * 5, [], {"activated": 5})
        else:
            assert (code, here, len(away), counts) == (409, [], 5, {"closed": 5})


RUN = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from airpanda.core.secret import Secret
from airpanda.db.pool import Database
from airpanda.jobs import retention
retention.BATCH = 3
async def main():
    database = Database(Secret(sys.stdin.readline().strip()))
    await database.open()
    keep = retention.Keep(timedelta(days=7), timedelta(days=365), None)
    tidier = retention.Retention(database, Path(sys.argv[1]), keep)
    print("go", flush=True)
    while await tidier.step():
        pass
    await database.close()
asyncio.run(main())
"""


def one_run(world: World, after_s: float | None) -> int:
    """A process of its own, killed after so many seconds of work; its exit code."""
    argv = [sys.executable, "-c", RUN, str(world.settings.file_store)]
    environment = {"PYTHONPATH": str(ROOT / "plugins"), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(world.database.url() + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "go\n"
        if after_s is not None:
            time.sleep(after_s)
            process.kill()
    return process.returncode


async def test_a_kill_in_the_middle_loses_nothing(world: World) -> None:
    pilot = await world.pilot()
    old = await a_whole_life(world, pilot)
    await age(world, 8)
    await put_away(world)
    await age(world, 392)
    wanted = [await world.submit(n, key=f"k{n}") for n in (1, 40, 90)]
    for job in await pilot.acquire(n_jobs=131):
        await pilot.good_report(job, "running", "finished")
    await age(world, 8)
    logs = (await world.sql("SELECT count(*) FROM panda_job_status_log"))[0][0]
    chance, kills = random.Random(8), 0
    for after_s in (*sorted(chance.uniform(0.0, 0.25) for _ in range(6)), None):  # a fast machine is soon done
        code = await asyncio.to_thread(one_run, world, after_s)
        kills += code == -9
        here = [row["panda_id"] for row in await world.sql("SELECT panda_id FROM panda_job")]
        away = [row["panda_id"] for row in await world.sql("SELECT panda_id FROM panda_archived_job WHERE task_id > 1")]
        assert sorted(here + away) == list(range(old["first_panda_id"] + 1, old["first_panda_id"] + 132))
        kept = await world.sql(
            "SELECT (SELECT count(*) FROM panda_job_status_log) + (SELECT coalesce(sum(jsonb_array_length(log)), 0)"
            " FROM panda_archived_job WHERE task_id > 1)"
        )
        assert kept[0][0] == logs
        for task in wanted:
            jobs = await world.good("GET", f"/v1/task/{task['task_id']}/jobs?limit=200")
            assert [job["status"] for job in jobs] == ["finished"] * task["n_jobs"]
    assert kills >= 2
    assert set((await rows_left(world)).values()) == {0}
    assert (await world.call("GET", f"/v1/job/{old['first_panda_id']}")).status_code == 410


async def test_files_are_removed_while_nothing_is_held_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_whole_life(world, await world.pilot())
    await age(world, 8)
    await put_away(world)
    await age(world, 366)
    loop, unlink, seen = asyncio.get_running_loop(), module._unlink, []
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = hashtext('panda_retention')::oid"

    def slow(paths: list[Path]) -> None:
        answer = asyncio.run_coroutine_threadsafe(world.sql(held), loop)  # the loop answers, and so does the database
        seen.append((len(paths), answer.result(10)[0][0]))
        unlink(paths)

    monkeypatch.setattr(module, "_unlink", slow)
    await put_away(world)
    assert seen == [(3, 0)]
    assert not any(path.is_file() for path in world.settings.file_store.rglob("*"))


async def test_what_was_removed_is_said_to_be_gone(world: World) -> None:
    pilot = await world.pilot()
    tasks = [await a_whole_life(world, pilot) for _ in range(2)]
    numbers = [task["first_panda_id"] for task in tasks]
    await pilot.post("update_worker_status", {"status": "finished", "node": "wn1"})
    await world.good("POST", f"/v1/batch/{1}/record", {"state": "submitted", "ce": "local", "handles": {}})
    await age(world, 8)
    await put_away(world)
    blobs = [path for path in world.settings.file_store.rglob("*") if path.is_file()]
    assert len(blobs) == 6
    await age(world, 366)
    kept = await world.submit()
    would = await tidier(world).would()
    assert (would.tasks_removed, would.jobs_removed, would.batches_removed) == (2, 2, 1)
    days = {f"{utcnow():%Y-%m-%d}"}
    await put_away(world)
    assert not any(path.exists() for path in blobs)
    days.add(f"{utcnow():%Y-%m-%d}")  # it may be midnight meanwhile
    for number in numbers:
        for end in ("", "/why", "/log", "/pilot_log", "/samples", "/debug"):
            gone = await world.call("GET", f"/v1/job/{number}{end}")
            assert (gone.status_code, gone.json()["code"]) == (410, "gone"), end
            assert any(f"removed on {day}" in gone.json()["detail"] for day in days)
        assert (await world.call("GET", f"/v1/file/{number}/hist.json")).status_code == 410
        assert (await world.call("POST", f"/v1/job/{number}/retry")).status_code == 410
    for task in tasks:
        for end in ("", "/progress", "/jobs"):
            assert (await world.call("GET", f"/v1/task/{task['task_id']}{end}")).status_code == 410
    assert (await world.call("GET", f"/v1/job/{kept['first_panda_id'] + 1}")).status_code == 404
    assert [job["panda_id"] for job in (await world.good("GET", "/v1/jobs"))["jobs"]] == [kept["first_panda_id"]]
    ranges = await world.sql("SELECT kind, first_id, last_id FROM panda_removed ORDER BY kind")
    assert [tuple(row) for row in ranges] == [("job", *numbers), ("task", *(task["task_id"] for task in tasks))]
    assert await world.sql("SELECT FROM panda_pilot") == []
    assert len(await world.sql("SELECT FROM panda_credential")) == 1
    actions = [row["action"] for row in await world.good("GET", "/v1/creds/audit")]
    assert actions.count("released") == 4, "who used whose credential is on record for longer"


async def test_an_input_that_was_removed_says_so(world: World) -> None:
    task = await a_whole_life(world, await world.pilot())
    wanted = [spec(inputs=[{"lfn": "in.json", "source": f"panda:{task['first_panda_id']}/hist.json"}])]
    await age(world, 8)
    await put_away(world)
    await age(world, 366)
    await world.submit(jobs=wanted)
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await put_away(world)
    gone = await pilot.get_input(job, "in.json")
    assert (gone.status_code, gone.json()["code"]) == (410, "gone")
    with pytest.raises(AssertionError, match="does not exist any more: job 1 was removed on"):
        await world.submit(jobs=wanted, inputs_now=True)


async def test_the_credential_log_loses_only_what_is_old(world: World) -> None:
    await world.credential()
    await world.sql(
        "INSERT INTO panda_credential_audit (at, action, owner_dn, actor) OVERRIDING SYSTEM VALUE"
        " SELECT now() - n * interval '1 day', 'staged', '/O=X/CN=Y', 'test' FROM generate_series(88, 92) AS n"
    )
    with pytest.raises(asyncpg.PostgresError, match="90 days"):
        await tidier(world, Keep(None, None, timedelta(days=89))).step()
    await world.sql("ALTER TABLE panda_credential_audit DISABLE TRIGGER USER")
    await world.sql("UPDATE panda_credential_audit SET audit_id = DEFAULT WHERE actor <> 'test'")
    await world.sql("ALTER TABLE panda_credential_audit ENABLE TRIGGER USER")
    await put_away(world, Keep(None, None, timedelta(days=90.5)))
    left = await world.sql("SELECT now() - at < interval '90.5 days' FROM panda_credential_audit")
    assert len(left) == 5
    assert all(row[0] for row in left)


async def test_what_cannot_go_on_is_said_once_and_holds_up_nothing(world: World) -> None:
    """Rows that somebody has changed by hand."""
    pilot = await world.pilot()
    broken, good = [await a_whole_life(world, pilot) for _ in range(2)]
    await age(world, 8)
    await world.sql("UPDATE panda_task SET archived_at = now(), ended_at = now() WHERE task_id = $1", broken["task_id"])
    await world.sql("ALTER TABLE panda_job DISABLE TRIGGER USER")
    await world.sql("UPDATE panda_job SET status = 'activated' WHERE task_id = $1", broken["task_id"])
    retention = tidier(world)
    with pytest.raises(ServiceError, match="changed by hand"):
        await retention.step()
    assert (await retention.step()).jobs_archived == 1
    assert not await retention.step()
    assert [row["task_id"] for row in await world.sql("SELECT task_id FROM panda_job")] == [broken["task_id"]]
    assert (await world.job(good["first_panda_id"]))["status"] == "finished"


async def test_for_ever_is_for_ever(world: World) -> None:
    await a_whole_life(world, await world.pilot())
    await age(world, 9000)
    assert not await tidier(world, Keep(None, None, None)).step()
    assert not await tidier(world, Keep(None, timedelta(days=1), None)).step(), (
        "nothing is removed that is not archived"
    )
    assert (await rows_left(world))["panda_job"] == 1


async def test_the_command_says_what_it_would_do_and_does_it(world: World, tmp_path: Path) -> None:
    task = await a_whole_life(world, await world.pilot())
    await age(world, 8)
    environment = {
        "PYTHONPATH": str(ROOT / "plugins"),
        "PATH": "/usr/bin:/bin",
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": world.database.url("postgresql+psycopg2"),
        "AIRFLOW__AIRPANDA__SIGNING_KEY": str(world.settings.signing_key),
        "AIRFLOW__AIRPANDA__FILE_STORE": str(world.settings.file_store),
        "AIRFLOW__AIRPANDA__INCLUDE_DIR": str(tmp_path),
    }

    async def command(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "airpanda", "retention", *arguments]
        return await asyncio.to_thread(
            subprocess.run, argv, env=environment | options, capture_output=True, text=True, timeout=60, check=False
        )

    before = await rows_left(world)
    dry = await command("--dry-run")
    assert "would go: 1 panda tasks and 1 jobs to the archive" in dry.stdout, dry.stderr
    assert await rows_left(world) == before
    wrong = await command(AIRFLOW__AIRPANDA__AUDIT_AFTER="60")
    assert (wrong.returncode, "audit_after" in wrong.stderr, "Traceback" in wrong.stderr) == (1, True, False)
    assert await rows_left(world) == before
    done = await command()
    assert "1 panda tasks and 1 jobs to the archive; 0 panda tasks" in done.stdout, done.stderr
    assert set((await rows_left(world)).values()) == {0}
    assert (await world.job(task["first_panda_id"]))["status"] == "finished"
