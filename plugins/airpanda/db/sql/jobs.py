"""Statements of the job store."""

from airpanda.db.sql.credentials import CONSENTED

RESERVE_IDS = """
INSERT INTO panda_counter AS c (name, next_id) VALUES ('panda_id', 1 + $1)
ON CONFLICT (name) DO UPDATE SET next_id = c.next_id + $1
RETURNING next_id - $1
"""
# Runs in a transaction of its own: a submission holds this row for as long as it takes to read it.

TASK_BY_KEY = "SELECT * FROM panda_task WHERE key_digest = $1 FOR UPDATE"

TASK_IF_KNOWN = "SELECT * FROM panda_task WHERE key_digest = $1"

TASK_BY_ID = "SELECT * FROM panda_task WHERE task_id = $1"

LOCK_TASK = "SELECT * FROM panda_task WHERE task_id = $1 FOR UPDATE"

INSERT_TASK = """
INSERT INTO panda_task (task_key, key_digest, content_digest, task_name, owner, owner_dn, queue, credential_id,
                        first_panda_id, n_jobs, ti, owner_ti, submitted_by, generation)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
ON CONFLICT (key_digest) DO NOTHING
RETURNING task_id
"""

SHARE_SCRIPTS = "INSERT INTO panda_task_scripts (task_id, scripts) VALUES ($1, $2)"

# The key is another panda task's from now on; the digest stays unique.
RETIRE_TASK = "UPDATE panda_task SET key_digest = sha256(key_digest || int8send(task_id)) WHERE task_id = $1"

FAILED_BY_SITE = """
SELECT DISTINCT j.queue FROM panda_job j JOIN panda_attempt a USING (panda_id, attempt_nr)
WHERE j.panda_id BETWEEN $1 AND $2 AND j.status = 'failed' AND a.errors->0->>'blame' = 'site'
UNION
SELECT queue FROM panda_job
WHERE panda_id BETWEEN $1 AND $2 AND status = 'closed' AND starts_with(change_reason, $3)
"""

ADOPT_TASK = """
UPDATE panda_task SET ti = $2, owner_ti = $3, credential_id = $4, submitted_by = $5, queue = $6, generation = $7
WHERE task_id = $1
"""

# What a person re-opens after the Airflow task's end is that task's no more, until a clear: nothing of Airflow may
# cancel it. While jobs are open that nobody told to stop, the Airflow task waits for them, and may.
DETACH_TASK = """
UPDATE panda_task SET owner_ti = ''
WHERE task_id = $1 AND NOT EXISTS (
    SELECT FROM panda_job WHERE panda_id BETWEEN $2 AND $3
      AND status NOT IN ('finished', 'failed', 'cancelled', 'closed') AND command <> 'tobekilled')
"""

# A job that was told to die and has not answered yet is fenced off at once: its pilot learns so at its next report.
CLOSE_KILLED_ATTEMPTS = """
UPDATE panda_attempt a SET status = 'cancelled', ended_at = now()
FROM (SELECT panda_id, attempt_nr FROM panda_job WHERE panda_id BETWEEN $1 AND $2 AND command = 'tobekilled'
      ORDER BY panda_id FOR UPDATE) AS j
WHERE a.panda_id = j.panda_id AND a.attempt_nr = j.attempt_nr AND a.ended_at IS NULL
"""
# Jobs before their attempts, as everybody locks them: reports that go together never wait for an attempt's row.

ANY_OPEN = """
SELECT EXISTS (
    SELECT FROM panda_job WHERE panda_id BETWEEN $1 AND $2
      AND status NOT IN ('finished', 'failed', 'cancelled', 'closed'))
"""

NEW_ATTEMPTS = """
UPDATE panda_job
SET status = 'activated', attempt_nr = attempt_nr + 1, charged = 0, returned = 0, command = '', credential_id = $3,
    pilot_id = NULL, lease_digest = NULL, lease_expires_at = NULL, changed_by = $4, change_reason = $5,
    queue = coalesce($6, queue)
WHERE panda_id BETWEEN $1 AND $2 AND (status IN ('failed', 'cancelled', 'closed') OR command = 'tobekilled')
"""

USE_CREDENTIAL = """
UPDATE panda_job SET credential_id = $3, queue = coalesce($4, queue)
WHERE panda_id BETWEEN $1 AND $2 AND status IN ('pending', 'defined', 'assigned', 'activated')
  AND (credential_id <> $3 OR queue <> $4)
"""

LOCK_JOB = """
SELECT panda_id, status, attempt_nr, max_attempt, charged, returned, command, pilot_id, lease_digest, credential_id,
       queue, lane, memory_mib, walltime_s, n_outputs
FROM panda_job WHERE panda_id = $1 FOR UPDATE
"""

ATTEMPT_END = """
SELECT status, errors FROM panda_attempt
WHERE panda_id = $1 AND attempt_nr = $2 AND pilot_id = $3 AND lease_digest = $4 AND ended_at IS NOT NULL
"""

CHANGE_STATUS = """
UPDATE panda_job SET status = $2, lease_expires_at = now() + $3::interval, changed_by = $4, change_reason = $5
WHERE panda_id = $1
RETURNING lease_expires_at
"""

# With what the next attempt asks for, its lane, and the node of the old one where that is to be avoided for a while:
# only if pilots of another node have asked for work lately, so that a job never waits where there is one node.
END_ATTEMPT = """
UPDATE panda_job j
SET status = $2, attempt_nr = attempt_nr + $3, charged = $4, returned = $5, command = '',
    pilot_id = NULL, lease_digest = NULL, lease_expires_at = NULL, changed_by = $6, change_reason = $7,
    memory_mib = $8, walltime_s = $9, lane = coalesce($10, lane),
    avoid_node = CASE WHEN $11::interval IS NOT NULL THEN (
        SELECT a.node FROM panda_attempt a WHERE a.panda_id = $1 AND a.attempt_nr = j.attempt_nr AND a.node <> ''
          AND EXISTS (SELECT FROM panda_pilot p
                      WHERE p.queue = j.queue AND p.ended_at IS NULL AND p.node NOT IN ('', a.node)
                        AND p.last_seen_at > now() - interval '10 min')) END,
    avoid_until = now() + $11::interval
WHERE panda_id = $1
"""

CLOSE_SILENT_ATTEMPT = """
UPDATE panda_attempt SET status = $3, ended_at = now(), errors = errors || $4
WHERE panda_id = $1 AND attempt_nr = $2
"""

KILL = """
UPDATE panda_job
SET status = CASE WHEN pilot_id IS NULL THEN 'cancelled' ELSE status END,
    command = CASE WHEN pilot_id IS NULL THEN '' ELSE 'tobekilled' END,
    changed_by = $3, change_reason = $4
WHERE panda_id BETWEEN $1 AND $2 AND status NOT IN ('finished', 'failed', 'cancelled', 'closed')
"""
# One statement for waiting and leased jobs: whatever a job becomes while this waits for its lock, it is caught.

# Those whose time to be looked at has come, and no others: a range of panda_job_check_ix.
SILENT = """
SELECT panda_id, status, attempt_nr, max_attempt, charged, returned, command, pilot_id, lease_digest, credential_id,
       queue, lane, memory_mib, walltime_s
FROM panda_job WHERE pilot_id IS NOT NULL AND check_at <= now() AND lease_expires_at < now()
ORDER BY check_at LIMIT $1 FOR UPDATE SKIP LOCKED
"""

OVERDUE = """
SELECT j.panda_id, j.status, j.attempt_nr, j.max_attempt, j.charged, j.returned, j.command, j.pilot_id, j.lease_digest,
       j.credential_id, j.queue, j.lane, j.memory_mib, j.walltime_s
FROM panda_job j JOIN unnest($2::text[], $3::interval[]) AS t (status, longest) USING (status)
WHERE j.pilot_id IS NOT NULL AND j.check_at <= now() AND j.changed_at < now() - t.longest
ORDER BY j.check_at LIMIT $1 FOR UPDATE OF j SKIP LOCKED
"""

# The others of them are alive: not to be looked at before they could be suspected, which is $2 before their lease ends.
LOOKED_AT = """
UPDATE panda_job SET check_at = lease_expires_at - $2::interval
WHERE panda_id IN (SELECT panda_id FROM panda_job
                   WHERE pilot_id IS NOT NULL AND check_at <= now() AND lease_expires_at > now() + $2
                   ORDER BY check_at LIMIT $1 FOR UPDATE SKIP LOCKED)
"""

# Only the oldest of each lane are looked at: who came after them has waited for less.
CLOSE_OVERDUE = """
UPDATE panda_job SET status = 'closed', changed_by = 'watchdog', change_reason = $1
WHERE status = 'activated' AND panda_id IN (
    SELECT j.panda_id
    FROM panda_lane l CROSS JOIN (VALUES (1), (-1)) AS d (sign)
    CROSS JOIN LATERAL (
        SELECT o.panda_id, o.changed_at FROM panda_job o WHERE o.lane = l.lane_id * d.sign AND o.status = 'activated'
        ORDER BY o.activated_xid, o.panda_id LIMIT $2) AS j
    WHERE j.changed_at < now() - $3::interval)
"""

# Those who wait, in the order of panda_job_claim_ix. The limit is no limit: it makes the planner take that index,
# whatever it believes of their number, and never read what is final.
_CLOSE = """
UPDATE panda_job SET status = 'closed', changed_by = 'watchdog', change_reason = $1
WHERE panda_id IN (
    SELECT k.panda_id FROM panda_job k
    WHERE k.status = 'activated' AND k.panda_id = ANY (ARRAY(
        SELECT j.panda_id
        FROM (SELECT panda_id, task_id, credential_id, queue, walltime_s FROM panda_job WHERE status = 'activated'
              ORDER BY lane, activated_xid, panda_id LIMIT 10000000) AS j
        JOIN panda_credential c USING (credential_id)
        WHERE <why> LIMIT $2))
    FOR UPDATE SKIP LOCKED)
"""
CLOSE_WITHOUT_CREDENTIAL = _CLOSE.replace(
    "<why>", "(c.state <> 'staged' OR c.expires_at < now() + j.walltime_s * interval '1 second')"
)
CLOSE_WITHOUT_KEY = _CLOSE.replace("<why>", "c.state = 'staged' AND c.sealed_by <> ALL ($3::text[])")
CLOSE_WITHOUT_CONSENT = _CLOSE.replace("<why>", f"c.state = 'staged' AND NOT {CONSENTED}")
# Three statements and no OR between them, so that the last one is an anti-join and not a question for each job.
