"""Statements of the job store."""

from airpanda.db.sql.credentials import BANNED, CONSENTED

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
FROM panda_job j
WHERE j.panda_id BETWEEN $1 AND $2 AND j.command = 'tobekilled'
  AND a.panda_id = j.panda_id AND a.attempt_nr = j.attempt_nr AND a.ended_at IS NULL
"""

NEW_ATTEMPTS = """
UPDATE panda_job
SET status = 'activated', attempt_nr = attempt_nr + 1, charged = 0, returned = 0, command = '', credential_id = $3,
    pilot_id = NULL, lease_digest = NULL, lease_expires_at = NULL, changed_by = $4, change_reason = $5,
    queue = coalesce($6, queue)
WHERE panda_id BETWEEN $1 AND $2 AND (status IN ('failed', 'cancelled', 'closed') OR command = 'tobekilled')
"""

USE_CREDENTIAL = """
UPDATE panda_job SET credential_id = $3, queue = $4
WHERE panda_id BETWEEN $1 AND $2 AND status IN ('pending', 'defined', 'assigned', 'activated')
  AND (credential_id <> $3 OR queue <> $4)
"""

# The lane has been matched with the pilot; what may have changed since is asked again here. The index
# panda_job_claim_ix gives the order, beginning where the last claim of this process ended. The subquery on the
# credential is scalar on purpose, so that it is asked for each candidate and never turned into a join over all jobs.
# Rows locked by another claim are skipped.
ACQUIRE = f"""
WITH candidate AS MATERIALIZED (
    SELECT j.panda_id
    FROM panda_job j
    WHERE j.lane = $1 AND j.status = 'activated' AND (j.activated_xid, j.panda_id) >= ($2, $3)
      AND (j.avoid_node IS DISTINCT FROM $8::text OR j.avoid_until <= now())
      AND (SELECT c.state = 'staged' AND c.expires_at >= now() + j.walltime_s * interval '1 second'
                  AND ($10::boolean OR c.retriever_dn = $4::text) AND c.sealed_by = ANY ($9::text[])
                  AND (c.scope = 'user' OR c.task_id = j.task_id) AND NOT {BANNED} AND {CONSENTED}
                  AND c.owner_dn <> ALL ($11::text[])
           FROM panda_credential c WHERE c.credential_id = j.credential_id)
    ORDER BY j.activated_xid, j.panda_id
    LIMIT cardinality($5::bytea[])
    FOR UPDATE OF j SKIP LOCKED
), numbered AS (
    SELECT panda_id, row_number() OVER () AS nr FROM candidate
), leased AS (
    UPDATE panda_job j
    SET status = 'sent', pilot_id = $6::bigint, lease_digest = ($5::bytea[])[n.nr],
        lease_expires_at = now() + $7::interval, check_at = now() + $7::interval, command = '',
        changed_by = 'pilot:' || $6::bigint, change_reason = ''
    FROM numbered n WHERE j.panda_id = n.panda_id
    RETURNING j.panda_id, j.task_id, j.attempt_nr, j.credential_id, j.activated_xid, j.lease_digest, j.lease_expires_at,
              j.memory_mib, j.walltime_s, n.nr
), opened AS (
    INSERT INTO panda_attempt (panda_id, attempt_nr, status, pilot_id, lease_digest, credential_id, node)
    SELECT panda_id, attempt_nr, 'sent', $6::bigint, lease_digest, credential_id, $8::text FROM leased
), released AS (
    INSERT INTO panda_credential_audit
        (action, credential_id, owner_dn, actor, panda_id, attempt_nr, pilot_id, node)
    SELECT 'released', l.credential_id, c.owner_dn, 'pilot:' || $6::bigint,
           l.panda_id, l.attempt_nr, $6::bigint, $8::text
    FROM leased l JOIN panda_credential c USING (credential_id)
), busy AS (
    UPDATE panda_pilot SET last_job_at = now() WHERE pilot_id = $6::bigint AND EXISTS (SELECT FROM leased)
)
SELECT l.panda_id, l.attempt_nr, l.nr, l.lease_expires_at, l.activated_xid, l.memory_mib, l.walltime_s, s.spec,
       (SELECT t.scripts FROM panda_task_scripts t WHERE t.task_id = l.task_id) AS shared_scripts,
       c.credential_id, c.server, c.username, c.cred_name, c.passphrase, c.owner_dn
FROM leased l JOIN panda_job_spec s USING (panda_id) JOIN panda_credential c USING (credential_id)
ORDER BY l.nr
"""  # noqa: S608 - constants

# Changes no indexed column: stays in its page. One that a crash of the database takes back is harmless: the next one is
# due in seconds. So nobody waits for the disk.
HEARTBEAT = """
UPDATE panda_job SET lease_expires_at = now() + $6::interval
WHERE panda_id = $1 AND attempt_nr = $2 AND pilot_id = $3 AND lease_digest = $4 AND status = $5
RETURNING lease_expires_at, command,
    (SELECT d.what FROM panda_debug d WHERE d.panda_id = $1 AND d.attempt_nr = $2 AND d.answered_at IS NULL) AS debug,
    set_config('synchronous_commit', 'off', true)
"""

# For a transaction of several reports: a heartbeat in it must not make the others wait less than they would alone.
DURABLE = "SET LOCAL synchronous_commit TO DEFAULT"

LOCK_JOB = """
SELECT panda_id, status, attempt_nr, max_attempt, charged, returned, command, pilot_id, lease_digest, credential_id,
       queue, lane, memory_mib, walltime_s
FROM panda_job WHERE panda_id = $1 FOR UPDATE
"""

ATTEMPT_END = """
SELECT status FROM panda_attempt
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

_NOTES = """
    status = $3::text,
    node = CASE WHEN $4::text <> '' THEN $4 ELSE node END,
    pilot_uid = coalesce($5, pilot_uid),
    account_name = CASE WHEN $6::text <> '' THEN $6 ELSE account_name END,
    account_uid = coalesce($7, account_uid),
    identity_switched = coalesce($8, identity_switched),
    exit_code = coalesce($9, exit_code),
    errors = CASE WHEN $10::jsonb <> '[]' THEN $10::jsonb ELSE errors END,
    wall_s = coalesce($11, wall_s), cpu_s = coalesce($12, cpu_s), max_rss_mib = coalesce($13, max_rss_mib),
    log_tail = CASE WHEN $14::text <> '' THEN $14 ELSE log_tail END,
    launcher = coalesce($16::jsonb, launcher),
    started_at = CASE WHEN $3 = 'running' THEN coalesce(started_at, now()) ELSE started_at END,
    ended_at = CASE WHEN $15::boolean THEN now() ELSE ended_at END
"""

NOTE_ATTEMPT = f"UPDATE panda_attempt SET {_NOTES} WHERE panda_id = $1 AND attempt_nr = $2"  # noqa: S608 - constants

_HELD = "panda_id = $1 AND attempt_nr = $2 AND pilot_id = $17 AND lease_digest = $18 AND status = ANY ($19::text[])"
_NOTED = f"""
    UPDATE panda_attempt a SET {_NOTES} FROM moved m WHERE a.panda_id = m.panda_id AND a.attempt_nr = m.attempt_nr
"""  # noqa: S608

# The two reports that nearly every attempt makes, a statement each. No row: anything else, which is decided elsewhere.
MOVE = f"""
WITH moved AS (
    UPDATE panda_job
    SET status = $3::text, lease_expires_at = now() + $21::interval, changed_by = $20, change_reason = ''
    WHERE {_HELD}
    RETURNING panda_id, attempt_nr, lease_expires_at, command
), noted AS ({_NOTED})
SELECT lease_expires_at, command,
    (SELECT d.what FROM panda_debug d WHERE d.panda_id = $1 AND d.attempt_nr = $2 AND d.answered_at IS NULL) AS debug
FROM moved
"""  # noqa: S608

FINISH = f"""
WITH moved AS (
    UPDATE panda_job
    SET status = $3::text, command = '', pilot_id = NULL, lease_digest = NULL, lease_expires_at = NULL,
        changed_by = $20, change_reason = ''
    WHERE {_HELD}
    RETURNING panda_id, attempt_nr
), noted AS ({_NOTED})
SELECT now() AS lease_expires_at, '' AS command, NULL::text AS debug FROM moved
"""  # noqa: S608

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

# The others of them are alive: not to be looked at before their lease as it is now could end.
LOOKED_AT = """
UPDATE panda_job SET check_at = lease_expires_at
WHERE panda_id IN (SELECT panda_id FROM panda_job
                   WHERE pilot_id IS NOT NULL AND check_at <= now() AND lease_expires_at > now()
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

_CLOSE = """
UPDATE panda_job SET status = 'closed', changed_by = 'watchdog', change_reason = $1
WHERE panda_id IN (
    SELECT j.panda_id FROM panda_job j JOIN panda_credential c USING (credential_id)
    WHERE j.status = 'activated' AND <why>
    LIMIT $2 FOR UPDATE OF j SKIP LOCKED)
"""
CLOSE_WITHOUT_CREDENTIAL = _CLOSE.replace(
    "<why>", "(c.state <> 'staged' OR c.expires_at < now() + j.walltime_s * interval '1 second')"
)
CLOSE_WITHOUT_KEY = _CLOSE.replace("<why>", "c.state = 'staged' AND c.sealed_by <> ALL ($3::text[])")
CLOSE_WITHOUT_CONSENT = _CLOSE.replace("<why>", f"c.state = 'staged' AND NOT {CONSENTED}")
# Three statements and no OR between them, so that the last one is an anti-join and not a question for each job.
