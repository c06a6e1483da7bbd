"""Statements of the answer to "why is my job waiting"."""

from airpanda.db.sql.credentials import CONSENTED

JOB = f"""
SELECT j.panda_id, j.status, j.queue, j.lane, j.activated_xid, j.changed_at, j.change_reason, j.pilot_id, j.command,
       extract(epoch FROM j.lease_expires_at - now())::float AS lease_left_s,
       t.owner, c.credential_id, c.state, c.expires_at >= now() + j.walltime_s * interval '1 second' AS lasts,
       {CONSENTED} AS consented
FROM panda_job j JOIN panda_task t USING (task_id) JOIN panda_credential c ON c.credential_id = j.credential_id
WHERE j.panda_id = $1
"""  # noqa: S608 - constants

ARCHIVED_JOB = """
SELECT j.panda_id, j.status, j.queue, NULL::bigint AS pilot_id, j.change_reason, t.owner
FROM panda_archived_job j JOIN panda_task t USING (task_id) WHERE j.panda_id = $1
"""

BEFORE_IN_LANE = """
SELECT count(*) FROM (SELECT FROM panda_job WHERE lane = $1 AND status = 'activated'
                      AND (activated_xid, panda_id) >= ($4, $5) AND (activated_xid, panda_id) < ($2, $3)
                      LIMIT 10000) AS before
"""

# Who has asked for work lately, and who is on the way.
PILOTS = """
SELECT count(*) FILTER (WHERE last_seen_at > now() - interval '10 min') AS seen,
       count(*) FILTER (WHERE last_seen_at IS NULL) AS coming,
       coalesce(array_agg(DISTINCT dn) FILTER (WHERE last_seen_at > now() - interval '10 min' AND dn <> ''),
                '{}') AS dns
FROM panda_pilot WHERE queue = $1 AND ended_at IS NULL
"""
