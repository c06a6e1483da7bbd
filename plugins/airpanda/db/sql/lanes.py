"""Statements of lanes: who waits, and where the first of each lane stands."""

from airpanda.db.sql.counts import LANE_COUNTS

OPEN_LANES = """
INSERT INTO panda_lane (digest, queue, owner, owner_dn, working_group, fqans, retriever_dn, priority, cores, memory_mib,
                        disk_mib, walltime_s, features)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (digest) DO NOTHING
"""

LANE_IDS = "SELECT digest, lane_id FROM panda_lane WHERE digest = ANY ($1::bytea[])"

LANES = "SELECT * FROM panda_lane WHERE lane_id = ANY ($1::bigint[])"

LANES_OF = """
SELECT * FROM panda_lane WHERE lane_id IN (SELECT DISTINCT abs(lane) FROM panda_job WHERE panda_id BETWEEN $1 AND $2)
"""

# What jobs asked for at first fits: only what was raised since can be over it.
FIT = """
UPDATE panda_job SET memory_mib = least(memory_mib, $3), walltime_s = least(walltime_s, $4)
WHERE panda_id BETWEEN $1 AND $2 AND status IN ('pending', 'defined', 'assigned', 'activated')
  AND (memory_mib > $3 OR walltime_s > $4)
"""

# For jobs that wait. To the counts of their panda task nothing happens, to those of the lanes the number of jobs.
CHANGE_LANES = """
WITH moved AS (
    UPDATE panda_job j SET lane = sign(j.lane) * m.new_lane, activated_xid = pg_current_xact_id()::text::bigint
    FROM unnest($3::bigint[], $4::bigint[]) AS m (old_lane, new_lane)
    WHERE j.panda_id BETWEEN $1 AND $2 AND abs(j.lane) = m.old_lane AND j.status = 'activated'
    RETURNING j.task_id, m.old_lane, m.new_lane
)
INSERT INTO panda_task_delta (task_id, lane, new_status, n)
SELECT task_id, each.lane, 'activated', sum(each.n)
FROM moved, LATERAL (VALUES (old_lane, -1), (new_lane, 1)) AS each (lane, n) GROUP BY task_id, each.lane
"""

# With the few rows that rules are made of.
SNAPSHOT = """
SELECT pg_snapshot_xmax(s)::text::bigint AS xmax, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s) AS x) AS open,
       coalesce((SELECT jsonb_agg(to_jsonb(b)) FROM panda_ban b), '[]') AS bans,
       coalesce((SELECT jsonb_agg(to_jsonb(h)) FROM panda_share h), '[]') AS shares
FROM pg_current_snapshot() AS s
"""

# Both directions of each lane, from where its first job stood at the last look. Empty ones are told once.
HEADS = """
SELECT l.lane_id * d.sign AS lane, h.activated_xid, h.panda_id
FROM panda_lane l CROSS JOIN (VALUES (1), (-1)) AS d (sign)
LEFT JOIN unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS b (lane, xid, panda_id) ON b.lane = l.lane_id * d.sign
LEFT JOIN LATERAL (
    SELECT j.activated_xid, j.panda_id FROM panda_job j
    WHERE j.lane = l.lane_id * d.sign AND j.status = 'activated'
      AND (j.activated_xid, j.panda_id) >= (coalesce(b.xid, 0), coalesce(b.panda_id, 0))
    ORDER BY j.activated_xid, j.panda_id LIMIT 1) AS h ON true
WHERE l.queue = $1 AND (h.panda_id IS NOT NULL OR b.lane IS NULL)
"""

USE = f"""
SELECT l.lane_id, l.queue, l.owner, l.working_group, l.fqans, l.cores, u.waiting, u.leased
FROM ({LANE_COUNTS}) AS u JOIN panda_lane l USING (lane_id)
WHERE u.leased > 0
"""  # noqa: S608 - constants

SHARES = "SELECT * FROM panda_share"
