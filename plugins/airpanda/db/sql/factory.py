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
LIVE = """
SELECT pilot_id, batch_id, ce, ce_job_id AS handle, ce_state, cancel_asked_at IS NOT NULL AS asked_to_end,
       coalesce((SELECT intent_key LIKE '%|factory/%' FROM panda_batch b WHERE b.batch_id = p.batch_id), false)
           AS by_factory,
       extract(epoch FROM now() - created_at)::float8 AS age_s,
       CASE WHEN registered_at IS NULL AND state IN ('intended', 'submitted') THEN 'queued'
            WHEN state = 'lost' THEN 'silent'
            WHEN state <> 'started' OR last_seen_at <= last_job_at THEN 'busy'
            WHEN last_seen_at > now() - interval '60 s' THEN 'idle'
            ELSE 'silent' END AS kind,
       CASE WHEN registered_at IS NULL AND state IN ('intended', 'submitted')
                THEN CASE WHEN ce_state = 'running' THEN extract(epoch FROM now() - ce_running_at) ELSE 0 END
            WHEN state = 'lost' OR state = 'started' AND coalesce(last_seen_at > last_job_at, true)
                THEN greatest(extract(epoch FROM now() - last_seen_at) - 60, 0)
            ELSE 0 END::float8 AS unheard_s
FROM panda_pilot p WHERE queue = $1 AND ended_at IS NULL ORDER BY pilot_id
"""

_RECENT = """
WITH recent AS MATERIALIZED (SELECT * FROM panda_pilot WHERE queue = $1 ORDER BY pilot_id DESC LIMIT 1000)
"""

# What the element never took (no handle) says nothing about its pilots; a benched pilot is as good as eaten.
BATCHES = (
    _RECENT
    + """
SELECT batch_id, max(ce) AS ce, count(*) AS pilots, count(registered_at) AS registered,
       count(*) FILTER (WHERE registered_at IS NULL AND cancel_asked_at IS NULL
                        AND (ended_at IS NOT NULL OR state = 'benched')) AS eaten,
       count(*) FILTER (WHERE registered_at IS NULL AND cancel_asked_at IS NOT NULL) AS cancelled
FROM recent WHERE ce_job_id <> '' OR registered_at IS NOT NULL
GROUP BY batch_id ORDER BY batch_id DESC
"""
)

QUEUE_TIMES = (
    _RECENT
    + """
SELECT ce, percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM registered_at - created_at))::float8 AS median
FROM recent WHERE registered_at IS NOT NULL GROUP BY ce
"""
)

NODES = (
    _RECENT
    + """
SELECT node, count(*) AS pilots, sum(jobs_done)::bigint AS jobs_done, sum(jobs_failed)::bigint AS jobs_failed,
       count(*) FILTER (WHERE state IN ('benched', 'failed', 'lost') AND jobs_done + jobs_failed = 0) AS short
FROM recent WHERE node <> '' AND last_seen_at > now() - interval '2 h' GROUP BY node
"""
)

OPEN = """
SELECT b.batch_id, b.tag, b.ce, b.held_until > now() AS held, extract(epoch FROM now() - b.created_at)::float8 AS age_s,
       coalesce(b.intent_key LIKE '%|factory/%', false) AS by_factory,
       (SELECT count(*) FROM panda_pilot p WHERE p.batch_id = b.batch_id) AS n_pilots
FROM panda_batch b
WHERE b.queue = $1 AND b.state IN ('intended', 'uncertain') AND b.purpose = 'work' ORDER BY b.batch_id
"""

STATES = "SELECT queue, decisions, cycled_at FROM panda_factory"

LIVE_BY_QUEUE = "SELECT queue, count(*) AS n FROM panda_pilot WHERE ended_at IS NULL GROUP BY queue"
