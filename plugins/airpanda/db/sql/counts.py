"""Statements of the counts: jobs of panda tasks by status, jobs of lanes that wait and that are with pilots.

Triggers add a row for each change, and a fold takes them away again. ``panda_folded`` says from which transaction on
such rows may exist: who reads begins there, and never meets the dead ones before it. Both parts are read in one
snapshot, so that the sum is exact at any moment.
"""

_BEHIND = """
SELECT d.* FROM panda_task_delta d WHERE d.xid >= coalesce((SELECT f.xid FROM panda_folded f), 0)
ORDER BY d.xid LIMIT 10000000
"""
# The limit is no limit: it makes the planner take the index, whatever it believes of the number of rows.

_OPEN = """
SELECT d.* FROM panda_task_delta d
WHERE d.xid = ANY (coalesce((SELECT f.still_open FROM panda_folded f), '{}'::bigint[]))
"""

FRESH = f"((SELECT * FROM ({_BEHIND}) AS behind) UNION ALL ({_OPEN}))"  # noqa: S608 - constants
"""The deltas that are not folded yet."""

_LEASED = "('sent', 'starting', 'running', 'holding', 'merging', 'transferring')"

_LANES = f"""
SELECT lane, sum(n * ((new_status = 'activated')::int - coalesce((old_status = 'activated')::int, 0))) AS waiting,
       sum(n * ((new_status IN {_LEASED})::int - coalesce((old_status IN {_LEASED})::int, 0))) AS leased
"""

FOLD_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('panda_task_delta'))"
# Held before the fold's snapshot is taken, so that one fold never passes over what another has taken already.

FOLD = f"""
WITH fresh AS MATERIALIZED (
    SELECT d.xid, d.delta_id FROM {FRESH} AS d
), taken AS (
    DELETE FROM panda_task_delta d USING fresh f WHERE d.xid = f.xid AND d.delta_id = f.delta_id
    RETURNING d.task_id, d.lane, d.old_status, d.new_status, d.n
), tasks AS (
    INSERT INTO panda_task_count AS c (task_id, status, n)
    SELECT task_id, status, sum(n)
    FROM (SELECT task_id, new_status COLLATE "C" AS status, n FROM taken
          UNION ALL SELECT task_id, old_status COLLATE "C", -n FROM taken WHERE old_status IS NOT NULL) AS each
    GROUP BY task_id, status HAVING sum(n) <> 0 ORDER BY task_id, status
    ON CONFLICT (task_id, status) DO UPDATE SET n = c.n + excluded.n
), lanes AS (
    INSERT INTO panda_lane_count AS c (lane_id, waiting, leased)
    SELECT * FROM ({_LANES} FROM taken GROUP BY lane) AS each WHERE waiting <> 0 OR leased <> 0 ORDER BY lane
    ON CONFLICT (lane_id) DO UPDATE SET waiting = c.waiting + excluded.waiting, leased = c.leased + excluded.leased
)
INSERT INTO panda_folded AS p (xid, still_open)
SELECT pg_snapshot_xmax(s)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) AS x)
FROM pg_current_snapshot() AS s
ON CONFLICT (is_only) DO UPDATE SET xid = excluded.xid, still_open = excluded.still_open
"""  # noqa: S608

# Words are put in the order of their bytes: in that of a language, sorting takes most of the time there is.
COUNTS_OF = f"""
SELECT task_id, status, sum(n)::bigint AS n
FROM (SELECT task_id, status COLLATE "C" AS status, n FROM panda_task_count WHERE task_id = ANY ($1::bigint[])
      UNION ALL
      SELECT d.task_id, each.status, each.n
      FROM (SELECT task_id, old_status COLLATE "C" AS old_status, new_status COLLATE "C" AS new_status, sum(n) AS n
            FROM {FRESH} AS f WHERE task_id = ANY ($1) GROUP BY 1, 2, 3) AS d,
           LATERAL (VALUES (d.new_status, d.n), (d.old_status, -d.n)) AS each (status, n)
      WHERE each.status IS NOT NULL) AS all_of_it
GROUP BY task_id, status HAVING sum(n) <> 0
"""  # noqa: S608

# Of these panda tasks (NULL: of all together), the jobs of which $2 and less is left of the lease: a range of
# panda_job_check_ix, in which stand those who are suspected and hardly anybody else.
SUSPECTED = """
SELECT task_id, count(*) AS n FROM panda_job
WHERE pilot_id IS NOT NULL AND check_at <= now() AND lease_expires_at <= now() + $2::interval
  AND ($1::bigint[] IS NULL OR task_id = ANY ($1))
GROUP BY task_id
"""

IS_LONG = f"SELECT count(*) >= $1 FROM (SELECT FROM {FRESH} AS d LIMIT $1) AS first"  # noqa: S608

LANE_COUNTS = f"""
SELECT lane_id, sum(waiting)::bigint AS waiting, sum(leased)::bigint AS leased
FROM (SELECT lane_id, waiting, leased FROM panda_lane_count
      UNION ALL SELECT * FROM ({_LANES} FROM {FRESH} AS d GROUP BY lane) AS each) AS all_of_it
GROUP BY lane_id HAVING sum(leased) > 0 OR sum(waiting) > 0
"""  # noqa: S608

WAITING = f"""
SELECT q.name, coalesce((SELECT sum(u.waiting)::bigint FROM ({LANE_COUNTS}) AS u JOIN panda_lane l USING (lane_id)
                         WHERE l.queue = q.name), 0) AS n
FROM unnest($1::text[]) AS q (name)
"""  # noqa: S608
