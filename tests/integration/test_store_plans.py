"""The plans of the hot statements, with a million final jobs, where a wrong one would show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from support.dispatcher import PILOT_DN, World, job_database, template_database, world
from support.postgres import postgres

from airpanda.db.sql import claims as claims_sql
from airpanda.db.sql import counts, files, observed, retention, views
from airpanda.db.sql import jobs as sql
from airpanda.db.sql import lanes as lanes_sql
from airpanda.db.sql import reports as reports_sql

__all__ = ["job_database", "postgres", "template_database", "world"]
pytestmark = pytest.mark.integration
LEASE = timedelta(seconds=150)
KEY = ([5001], [1], [1], [b"digest"])

FILL = """
INSERT INTO panda_job (panda_id, task_id, credential_id, queue, lane, activated_xid, status, priority, max_attempt,
                       cores, memory_mib, disk_mib, walltime_s, changed_by, pilot_id, lease_digest, lease_expires_at,
                       check_at)
SELECT n, 1, 1, 'Q' || n % 10, n % 10, n / 1000,
       CASE WHEN n > 60000 THEN 'finished' WHEN n % 3 = 0 THEN 'activated' WHEN n % 100 = 1 THEN 'running'
            ELSE 'finished' END,
       n % 7, 3, 1, 1000, 1000, 3600, 'test',
       CASE WHEN n <= 60000 AND n % 3 <> 0 AND n % 100 = 1 THEN 1 END,
       CASE WHEN n <= 60000 AND n % 3 <> 0 AND n % 100 = 1 THEN 'x'::bytea END,
       CASE WHEN n <= 60000 AND n % 3 <> 0 AND n % 100 = 1 THEN now() + interval '1 h' END,
       CASE WHEN n <= 60000 AND n % 3 <> 0 AND n % 100 = 1 THEN now() + n * interval '1 s' END
FROM generate_series(1, 1060000) AS n
"""


async def explain(connection: Any, statement: str, *values: Any) -> list[dict[str, Any]]:
    """The nodes of the plan, outermost first."""
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *values)
    return list(walk(json.loads(text)[0]["Plan"]))


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """This node of a plan and all below it, outermost first."""
    yield node
    for inner in node.get("Plans", []):
        yield from walk(inner)


async def test_hot_statements_use_their_indexes(world: World) -> None:
    await world.credential()
    connection = await asyncpg.connect(world.database.url())
    try:
        await connection.execute("ALTER TABLE panda_job DISABLE TRIGGER panda_job_inserted")
        await connection.execute(FILL)
        await connection.execute("ANALYZE panda_job")
        keys = world.services.credentials.key_ids
        others = ["/O=Test Grid/CN=Somebody Else"]
        offer = (3, 17, 0, None, [b"a" * 32], [1], LEASE, ["wn"], keys, False, others, "DEMO", LEASE)
        nothing = [[None]] * 5
        said = (*KEY[:2], ["running"], [""], *nothing[:1], [""], *nothing[:3], ["[]"], *nothing[:3], [""], [False])
        for statement, values, index in (
            (claims_sql.ACQUIRE, offer, "panda_job_claim_ix"),
            (reports_sql.HEARTBEATS, (*KEY, ["running"], LEASE), "panda_job_pkey"),
            (reports_sql.MOVES, (*said, [None], *KEY[2:], [",sent,"], LEASE), "panda_job_pkey"),
            (sql.LOCK_JOB, (5000,), "panda_job_pkey"),
            (sql.SILENT, (500,), "panda_job_check_ix"),
            (sql.OVERDUE, (500, ["running"], [LEASE]), "panda_job_check_ix"),
            (sql.LOOKED_AT, (500, LEASE), "panda_job_check_ix"),
            (counts.SUSPECTED, ([7], LEASE), "panda_job_check_ix"),
            (counts.SUSPECTED, (None, LEASE), "panda_job_check_ix"),
            (sql.KILL, (4000, 4100, "x", "y"), "panda_job_pkey"),
            (sql.NEW_ATTEMPTS, (4000, 4100, 1, "x", "y", None), "panda_job_pkey"),
            (lanes_sql.HEADS, ("Q3", [], [], []), "panda_job_claim_ix"),
            (sql.CLOSE_OVERDUE, ("x", 500, LEASE), "panda_job_claim_ix"),
            (sql.CLOSE_WITHOUT_CREDENTIAL, ("x", 500), "panda_job_claim_ix"),
            (sql.CLOSE_WITHOUT_KEY, ("x", 500, keys), "panda_job_claim_ix"),
            (sql.CLOSE_WITHOUT_CONSENT, ("x", 500), "panda_job_claim_ix"),
        ):
            nodes = await explain(connection, statement, *values)
            assert index in [node.get("Index Name") for node in nodes], statement
            jobs = [node["Node Type"] for node in nodes if node.get("Relation Name") == "panda_job"]
            assert "Seq Scan" not in jobs, statement
            checks = [node["Index Cond"] for node in nodes if node.get("Index Name") == "panda_job_check_ix"]
            assert all("check_at <= now()" in condition for condition in checks), "a range, not every leased row"
        claim = await explain(connection, claims_sql.ACQUIRE, *offer)
        (scan,) = [node for node in claim if node.get("Index Name") == "panda_job_claim_ix"]
        assert "lane" in scan["Index Cond"]
        assert "ROW(activated_xid, panda_id) >=" in scan["Index Cond"]
        sorts = [node for node in claim if node["Node Type"] == "Sort"]
        assert len(sorts) <= 1, "the index gives the order; only the answer is sorted"
    finally:
        await connection.close()


async def test_a_claim_for_many_looks_for_each_job_once(world: World) -> None:
    """Also with a plan that is made before anybody knows how many ask."""
    n = 30
    await world.submit(2 * n)
    lane = (await world.sql("SELECT lane_id FROM panda_lane"))[0]["lane_id"]
    started = """
        INSERT INTO panda_pilot (batch_id, queue, state) SELECT 0, 'DEMO', 'started' FROM generate_series(1, $1::int)
        RETURNING pilot_id
    """
    pilots = [row["pilot_id"] for row in await world.sql(started, n)]
    digests, keys = [b"%032d" % each for each in range(n)], world.services.credentials.key_ids
    asked = (lane, 0, 0, PILOT_DN, digests, pilots, LEASE, ["wn"] * n, keys, False, [], "DEMO", LEASE)
    connection = await asyncpg.connect(world.database.url())
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        (found,) = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {claims_sql.ACQUIRE}", *asked))
    finally:
        await connection.close()
    nodes = list(walk(found["Plan"]))
    looked = {
        table: sum(node["Actual Loops"] for node in nodes if node.get("Relation Name") == table)
        for table in ("panda_job_spec", "panda_job", "panda_credential")
    }
    assert found["Plan"]["Actual Rows"] == n
    assert 0 < max(looked.values()) <= 4 * n, looked


ARCHIVED = """
INSERT INTO panda_archived_job
SELECT n, n, 'job', 'DEMO', 'finished', 1, 1, 1, '', now(), '{}', jsonb_build_array(jsonb_build_object(
       'attempt_nr', 1, 'status', 'finished', 'credential_id', 1)), '[]', '[]'
FROM generate_series(1, 20000) AS n WHERE n % 2 = 0
"""
HERE = """
INSERT INTO panda_job (panda_id, task_id, credential_id, queue, lane, status, priority, max_attempt, cores, memory_mib,
                       disk_mib, walltime_s, changed_by)
SELECT n, n, 1, 'DEMO', 1, 'finished', 1, 1, 1, 1, 1, 1, 'test' FROM generate_series(1, 20000) AS n WHERE n % 2 = 1
"""


TASKS = """
INSERT INTO panda_task (task_key, key_digest, content_digest, task_name, owner, owner_dn, queue, credential_id,
                        first_panda_id, n_jobs, ti, owner_ti, submitted_by, created_at, archived_at, ended_at,
                        in_archive)
SELECT n, int8send(n), '', 't', 'alice', '/CN=alice', 'DEMO', 1, n, 1, '{}', '', 'test', now() - n * interval '1 s',
       CASE WHEN n > 5000 THEN now() END, CASE WHEN n > 5000 THEN now() END, n > 5000
FROM generate_series(1, 20000) AS n
"""


async def test_what_people_look_at_reads_nothing_else(world: World) -> None:
    """Jobs are here or in the archive: both are found by their number, and pages merge the two in order."""
    connection = await asyncpg.connect(world.database.url())
    try:
        await connection.execute("ALTER TABLE panda_job DISABLE TRIGGER panda_job_inserted")
        await connection.execute(HERE + ";" + ARCHIVED)
        await connection.execute("ANALYZE panda_job, panda_archived_job")
        for statement, values in (
            (views.JOBS, ([5000, 5001],)),
            (views.ATTEMPTS, ([5000, 5001],)),
            (views.STATUSES, ([5000, 5001], None)),
            (views.JOBS_OF_TASK, (5000, 5010, None, 10, 0)),
            (views.TASK_OF_JOB, (5000,)),
            (views.LAST_LOG, (5000,)),
            (views.PAGE, (10000, 100, None, None, None, 10)),
            (views.PAGE_END, (10000, 100)),
            (observed.SAMPLES, (5000,)),
            (files.OUTPUT, (5000, "x")),
            (files.OUTPUTS, ([5000, 5001], ["x", "y"])),
        ):
            nodes = await explain(connection, statement, *values)
            read = {node.get("Relation Name"): node["Node Type"] for node in nodes}
            assert "Seq Scan" not in (read.get("panda_archived_job"), read.get("panda_job")), statement
        await connection.execute(TASKS)
        await connection.execute("ANALYZE panda_task")
        for statement, values, index in (
            (retention.QUIET, (LEASE, datetime(1970, 1, 1, tzinfo=UTC), 0), "panda_task_here_ix"),
            (retention.BEGUN, ([],), "panda_task_begun_ix"),
            (retention.OLD, (LEASE,), "panda_task_archived_ix"),
        ):
            nodes = await explain(connection, statement, *values)
            scans = {node.get("Index Name"): node.get("Index Cond", "") for node in nodes}
            assert index in scans, statement
            assert index == "panda_task_begun_ix" or "now() -" in scans[index], "what is due, and no other"
        page = await explain(connection, views.PAGE_END, 10000, 100)
        assert "Merge Append" in [node["Node Type"] for node in page]
        assert "Sort" not in [node["Node Type"] for node in page]
    finally:
        await connection.close()


async def test_heartbeats_stay_in_their_page(world: World) -> None:
    await world.submit()
    pilot = await world.pilot()
    (job,) = await pilot.acquire()
    await pilot.good_report(job, "starting", "running")
    counters = (
        "SELECT n_tup_upd - n_tup_hot_upd AS cold, n_tup_hot_upd AS hot FROM pg_stat_xact_user_tables"
        " WHERE relname = 'panda_job'"
    )
    connection = await asyncpg.connect(world.database.url())
    try:
        async with connection.transaction():
            row = await connection.fetchrow("SELECT pilot_id, lease_digest FROM panda_job")
            for _ in range(5):
                beat = ([job["panda_id"]], [1], [row["pilot_id"]], [row["lease_digest"]], ["running"], LEASE)
                assert await connection.fetchrow(reports_sql.HEARTBEATS, *beat) is not None
            assert tuple(await connection.fetchrow(counters)) == (0, 5)
    finally:
        await connection.close()
