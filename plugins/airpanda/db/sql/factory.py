"""Statements of the pilot factory: on one queue's live or latest pilots, never on all that ever were."""

from airpanda.db.sql.counts import LANE_COUNTS

BEGIN = """
INSERT INTO panda_factory AS f (queue, holder, fence, held_until) VALUES ($1, $2, 1, now() + $3::interval)
ON CONFLICT (queue) DO UPDATE SET holder = $2, fence = f.fence + 1, held_until = now() + $3::interval
WHERE f.held_until <= now()
RETURNING fence, memory
"""

HOLDER = "SELECT holder, fence, held_until, memory FROM panda_factory WHERE queue = $1"

HOLDS = "SELECT fence = $2 AND held_until > now() FROM panda_factory WHERE queue = $1 FOR SHARE"

END = """
UPDATE panda_factory SET memory = $3, decisions = $4, cycled_at = now(), held_until = now()
WHERE queue = $1 AND fence = $2
RETURNING queue
"""

BENCH = """
INSERT INTO panda_bad_node (queue, node, until, reason) VALUES ($1, $2, $3, $4)
ON CONFLICT (queue, node) DO UPDATE SET until = excluded.until, reason = excluded.reason
"""

UNBENCH = "DELETE FROM panda_bad_node WHERE queue = $1 AND until <= now()"

BAD_NODES = "SELECT node, until FROM panda_bad_node WHERE queue = $1 AND until > now()"

DEMAND = f"""
SELECT coalesce(sum(u.waiting), 0)::bigint AS waiting, coalesce(sum(u.waiting * l.cores), 0)::bigint AS waiting_cores
FROM ({LANE_COUNTS}) AS u JOIN panda_lane l USING (lane_id)
WHERE l.queue = $1 AND l.cores <= $2 AND l.memory_mib <= $3 AND l.disk_mib <= $4 AND l.walltime_s <= $5
  AND l.features <@ $6::text[]
"""  # noqa: S608 - constants

# A pilot that asked for work since it last got some, and lately, is idle; one that does not ask is busy, or silent.
# That of a test of the queue takes no jobs: it is looked at as the others are, and counted on by nobody.
LIVE = """
SELECT pilot_id, batch_id, p.ce, ce_job_id AS handle, ce_state, cancel_asked_at IS NOT NULL AS asked_to_end,
       coalesce(intent_key LIKE '%|factory/%', false) AS by_factory,
       extract(epoch FROM now() - p.created_at)::float8 AS age_s,
       CASE WHEN b.purpose = 'probe' THEN 'probe'
            WHEN registered_at IS NULL AND p.state IN ('intended', 'submitted') THEN 'queued'
            WHEN p.state = 'lost' THEN 'silent'
            WHEN p.state <> 'started' OR last_seen_at <= last_job_at THEN 'busy'
            WHEN last_seen_at > now() - interval '60 s' THEN 'idle'
            ELSE 'silent' END AS kind,
       CASE WHEN registered_at IS NULL AND p.state IN ('intended', 'submitted')
                THEN CASE WHEN ce_state = 'running' THEN extract(epoch FROM now() - ce_running_at) ELSE 0 END
            WHEN p.state = 'lost' OR p.state = 'started' AND coalesce(last_seen_at > last_job_at, true)
                THEN greatest(extract(epoch FROM now() - last_seen_at) - 60, 0)
            ELSE 0 END::float8 AS unheard_s
FROM panda_pilot p LEFT JOIN panda_batch b USING (batch_id)
WHERE p.queue = $1 AND ended_at IS NULL ORDER BY pilot_id
"""

# There can be thousands: their JSON is made here and handed through as it is.
LIVE_JSON = f"SELECT coalesce(json_agg(live), '[]')::text FROM ({LIVE}) AS live"  # noqa: S608 - a constant

# One look at the latest pilots for all that is counted of them. What the element never took (no handle) says nothing
# about its pilots; a benched pilot is as good as eaten.
RECENT = """
WITH recent AS MATERIALIZED (
    SELECT batch_id, ce, node, state, ce_job_id <> '' AS taken, registered_at IS NOT NULL AS registered,
           cancel_asked_at IS NOT NULL AS to_end, ended_at IS NOT NULL AS ended, last_seen_at, jobs_done, jobs_failed,
           extract(epoch FROM registered_at - created_at)::float8 AS queue_s
    FROM panda_pilot WHERE queue = $1 ORDER BY pilot_id DESC LIMIT 1000
), batches AS (
    SELECT batch_id, max(ce) AS ce, count(*) AS pilots, count(*) FILTER (WHERE registered) AS registered,
           count(*) FILTER (WHERE NOT registered AND NOT to_end AND (ended OR state = 'benched')) AS eaten,
           count(*) FILTER (WHERE NOT registered AND to_end) AS cancelled
    FROM recent WHERE taken OR registered GROUP BY batch_id ORDER BY batch_id DESC
), queue_s AS (
    SELECT ce, percentile_cont(0.5) WITHIN GROUP (ORDER BY queue_s) AS median FROM recent WHERE registered GROUP BY ce
), nodes AS (
    SELECT node, count(*) AS pilots, sum(jobs_done) AS jobs_done, sum(jobs_failed) AS jobs_failed,
           count(*) FILTER (WHERE state IN ('benched', 'failed', 'lost') AND jobs_done + jobs_failed = 0) AS short
    FROM recent WHERE node <> '' AND last_seen_at > now() - interval '2 h' GROUP BY node
)
SELECT (SELECT coalesce(jsonb_agg(b), '[]') FROM batches b) AS batches,
       (SELECT coalesce(jsonb_object_agg(ce, median), '{}') FROM queue_s) AS queue_s,
       (SELECT coalesce(jsonb_agg(n), '[]') FROM nodes n) AS nodes
"""

OPEN = """
SELECT b.batch_id, b.tag, b.ce, b.held_until > now() AS held, extract(epoch FROM now() - b.created_at)::float8 AS age_s,
       coalesce(b.intent_key LIKE '%|factory/%', false) AS by_factory,
       (SELECT count(*) FROM panda_pilot p WHERE p.batch_id = b.batch_id) AS n_pilots
FROM panda_batch b
WHERE b.queue = $1 AND b.state IN ('intended', 'uncertain') ORDER BY b.batch_id
"""

STATES = "SELECT queue, decisions, cycled_at FROM panda_factory"

KINDS = f"SELECT kind, count(*) AS n FROM ({LIVE}) AS live WHERE kind <> 'probe' GROUP BY kind"  # noqa: S608 - a constant

LIVE_BY_QUEUE = "SELECT queue, count(*) AS n FROM panda_pilot WHERE ended_at IS NULL GROUP BY queue"
