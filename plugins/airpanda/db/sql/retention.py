"""Statements of retention: panda tasks whose jobs go into the archive, and what is removed from there.

A panda task is the unit: its row says how far it has come, so that whoever goes on after a kill finds it. Each batch is
one transaction; every row is in one place before and after it.
"""

_FINAL = "('finished', 'failed', 'cancelled', 'closed')"
_RANGE = "BETWEEN t.first_panda_id AND t.first_panda_id + t.n_jobs - 1"

# One at a time in all processes; held to the end of the transaction.
LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('panda_retention'))"

# What was begun and is not over: after a kill, or the next batch of a large one. Without those that cannot go on.
BEGUN = """
SELECT task_id, first_panda_id, n_jobs FROM panda_task
WHERE archived_at IS NOT NULL AND NOT in_archive AND task_id <> ALL ($1::bigint[])
ORDER BY task_id LIMIT 1 FOR UPDATE SKIP LOCKED
"""

# Nothing of it has changed for that long, so that all of it is final.
_QUIET = f"""
t.archived_at IS NULL AND t.created_at < now() - $1::interval AND NOT EXISTS (
    SELECT FROM panda_job j
    WHERE j.panda_id {_RANGE} AND (j.status NOT IN {_FINAL} OR j.changed_at > now() - $1::interval))
"""

QUIET = f"""
SELECT t.task_id, t.first_panda_id, t.n_jobs, t.created_at FROM panda_task t
WHERE (t.created_at, t.task_id) > ($2::timestamptz, $3::bigint) AND {_QUIET}
ORDER BY t.created_at, t.task_id LIMIT 1 FOR UPDATE OF t SKIP LOCKED
"""  # noqa: S608

# Asked again under the lock of the panda task, which everybody takes who opens attempts.
BEGIN = f"""
UPDATE panda_task t SET archived_at = now(),
    ended_at = (SELECT max(j.changed_at) FROM panda_job j WHERE j.panda_id {_RANGE})
WHERE t.task_id = $2 AND {_QUIET}
RETURNING t.task_id
"""  # noqa: S608

ARCHIVE = f"""
INSERT INTO panda_archived_job (panda_id, task_id, job_name, queue, status, priority, attempt_nr, max_attempt,
                                change_reason, changed_at, spec, attempts, log, samples)
SELECT j.panda_id, j.task_id, s.job_name, j.queue, j.status, j.priority, j.attempt_nr, j.max_attempt,
       j.change_reason, j.changed_at, s.spec,
       coalesce((SELECT jsonb_agg(to_jsonb(a) ORDER BY a.attempt_nr) FROM panda_attempt a
                 WHERE a.panda_id = j.panda_id), '[]'),
       coalesce((SELECT jsonb_agg(to_jsonb(l) - 'panda_id' ORDER BY l.log_id) FROM panda_job_status_log l
                 WHERE l.panda_id = j.panda_id), '[]'),
       coalesce((SELECT jsonb_agg(to_jsonb(m) - 'panda_id' ORDER BY m.attempt_nr, m.at_s) FROM panda_sample m
                 WHERE m.panda_id = j.panda_id), '[]')
FROM (SELECT * FROM panda_job WHERE panda_id BETWEEN $1 AND $2 AND status IN {_FINAL}
      ORDER BY panda_id LIMIT $3 FOR UPDATE) AS j
JOIN panda_job_spec s USING (panda_id)
RETURNING panda_id
"""  # noqa: S608

LEAVE = tuple(
    f"DELETE FROM {table} WHERE panda_id = ANY ($1::bigint[])"  # noqa: S608
    for table in ("panda_job", "panda_job_spec", "panda_attempt", "panda_job_status_log", "panda_sample")
)

DONE = """
UPDATE panda_task SET in_archive = true
WHERE task_id = $1 AND NOT EXISTS (SELECT FROM panda_job WHERE panda_id BETWEEN $2 AND $3)
RETURNING task_id
"""

# --- removal -------------------------------------------------------------------------------------------------------

_OLD = "t.in_archive AND t.ended_at < now() - $1::interval"

OLD = f"""
SELECT t.task_id, t.first_panda_id, t.n_jobs FROM panda_task t WHERE {_OLD}
ORDER BY t.ended_at LIMIT 1 FOR UPDATE OF t SKIP LOCKED
"""  # noqa: S608

ARCHIVED_IDS = """
SELECT panda_id FROM panda_archived_job WHERE panda_id BETWEEN $1 AND $2 ORDER BY panda_id LIMIT $3 FOR UPDATE
"""

BLOBS = "SELECT blob FROM panda_file WHERE panda_id = ANY ($1::bigint[]) AND blob IS NOT NULL"

REMOVE = tuple(
    f"DELETE FROM {table} WHERE panda_id = ANY ($1::bigint[])"  # noqa: S608
    for table in ("panda_file", "panda_debug", "panda_archived_job")
)

# A credential that served this panda task alone goes with it; the log of its use stays.
REMOVE_TASK = (
    "DELETE FROM panda_task_scripts WHERE task_id = $1",
    "DELETE FROM panda_task_sandbox WHERE task_id = $1",
    "DELETE FROM panda_task_count WHERE task_id = $1",
    "DELETE FROM panda_consent c USING panda_credential d"
    " WHERE d.task_id = $1 AND d.scope <> 'user' AND d.expires_at < now() AND c.credential_id = d.credential_id",
    "DELETE FROM panda_credential WHERE task_id = $1 AND scope <> 'user' AND expires_at < now()",
    "DELETE FROM panda_task WHERE task_id = $1",
)

# Numbers next to those removed lately make their range longer, so that few rows say all of it.
EXTEND = """
UPDATE panda_removed SET last_id = $3
WHERE kind = $1 AND last_id = $2 - 1 AND removed_at > now() - interval '1 day'
  AND first_id = (SELECT first_id FROM panda_removed WHERE kind = $1 AND first_id < $2 ORDER BY first_id DESC LIMIT 1)
RETURNING first_id
"""

NOTE_REMOVED = "INSERT INTO panda_removed (kind, first_id, last_id) VALUES ($1, $2, $3)"

REMOVED_AT = """
SELECT removed_at FROM (SELECT * FROM panda_removed WHERE kind = $1 AND first_id <= $2
                        ORDER BY first_id DESC LIMIT 1) AS last
WHERE last_id >= $2
"""

# Batches whose pilots have all been over for as long.
_OVER = """
b.created_at < now() - $1::interval AND NOT EXISTS (
    SELECT FROM panda_pilot p
    WHERE p.batch_id = b.batch_id AND (p.ended_at IS NULL OR p.ended_at > now() - $1::interval))
"""

OLD_BATCHES = f"""
SELECT b.batch_id FROM panda_batch b WHERE {_OVER} ORDER BY b.batch_id LIMIT $2 FOR UPDATE SKIP LOCKED
"""  # noqa: S608

REMOVE_BATCHES = tuple(
    f"DELETE FROM {table} WHERE batch_id = ANY ($1::bigint[])"  # noqa: S608
    for table in ("panda_pilot", "panda_batch")
)

# The oldest of them only are looked at.
REMOVE_AUDIT = """
DELETE FROM panda_credential_audit WHERE audit_id IN (
    SELECT audit_id FROM (SELECT audit_id, at FROM panda_credential_audit ORDER BY audit_id LIMIT $2) AS oldest
    WHERE at < now() - $1::interval)
"""

# --- what would be done --------------------------------------------------------------------------------------------

WOULD_ARCHIVE = f"""
SELECT count(*) AS tasks, coalesce(sum(t.n_jobs), 0) AS jobs FROM panda_task t
WHERE t.archived_at IS NOT NULL AND NOT t.in_archive OR {_QUIET}
"""  # noqa: S608

WOULD_REMOVE = f"""
SELECT count(*) AS tasks, coalesce(sum(t.n_jobs), 0) AS jobs,
       coalesce(sum((SELECT sum(f.size) FROM panda_file f
                     WHERE f.panda_id {_RANGE} AND f.blob IS NOT NULL)), 0) AS bytes
FROM panda_task t WHERE {_OLD}
"""  # noqa: S608

WOULD_REMOVE_BATCHES = f"SELECT count(*) FROM panda_batch b WHERE {_OVER}"  # noqa: S608

WOULD_REMOVE_AUDIT = "SELECT count(*) FROM panda_credential_audit WHERE at < now() - $1::interval"
