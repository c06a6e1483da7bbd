"""Statements of what people and operators look at, archived jobs included."""

from airpanda.db.sql import anywhere

# What is left of a lease; NULL without one.
_LEFT_S = "extract(epoch FROM j.lease_expires_at - now())::float8"

JOBS = f"""
SELECT j.panda_id, j.task_id, coalesce(s.job_name, j.archived_name) AS job_name, t.owner,
       t.owner_dn, j.queue, j.status, j.attempt_nr, j.max_attempt, t.ti,
       j.change_reason AS reason, {_LEFT_S} AS left_s
FROM {anywhere.JOB} AS j LEFT JOIN panda_job_spec s USING (panda_id) JOIN panda_task t USING (task_id)
WHERE j.panda_id = ANY ($1::bigint[])
ORDER BY j.panda_id
"""  # noqa: S608 - constants

JOBS_OF_TASK = f"""
SELECT panda_id FROM {anywhere.JOB} AS j
WHERE panda_id BETWEEN $1 AND $2 AND ($3::text[] IS NULL OR status = ANY ($3))
ORDER BY panda_id LIMIT $4 OFFSET $5
"""  # noqa: S608

ATTEMPTS = f"""
SELECT * FROM {anywhere.ATTEMPT} AS a WHERE panda_id = ANY ($1::bigint[]) ORDER BY panda_id, attempt_nr DESC
"""  # noqa: S608

# Of each job, the files of the newest attempt that finished.
OUTPUTS = f"""
SELECT f.* FROM panda_file f
JOIN (SELECT panda_id, max(attempt_nr) AS attempt_nr FROM {anywhere.ATTEMPT} AS a
      WHERE panda_id = ANY ($1::bigint[]) AND status = 'finished' GROUP BY panda_id) AS last
  ON f.panda_id = last.panda_id AND f.attempt_nr = last.attempt_nr
WHERE f.lfn NOT IN ('payload.log', 'pilot-log.tgz')
ORDER BY f.panda_id, f.lfn
"""  # noqa: S608

# Of each job, the logs of its latest attempt.
LOGS = f"""
SELECT f.* FROM panda_file f
JOIN (SELECT panda_id, max(attempt_nr) AS attempt_nr FROM {anywhere.ATTEMPT} AS a
      WHERE panda_id = ANY ($1::bigint[]) GROUP BY panda_id) AS last
  ON f.panda_id = last.panda_id AND f.attempt_nr = last.attempt_nr
WHERE f.lfn IN ('payload.log', 'pilot-log.tgz')
ORDER BY f.panda_id, f.lfn
"""  # noqa: S608

STATUSES = f"""
SELECT j.panda_id, j.attempt_nr, j.status FROM {anywhere.JOB} AS j JOIN panda_task t USING (task_id)
WHERE j.panda_id = ANY ($1::bigint[]) AND ($2::text[] IS NULL OR t.owner = ANY ($2))
ORDER BY j.panda_id
"""  # noqa: S608

# Of jobs that this pilot has, or had.
PILOTS_STATUSES = """
SELECT j.panda_id, j.attempt_nr, j.status FROM panda_job j
WHERE j.panda_id = ANY ($1::bigint[])
  AND EXISTS (SELECT FROM panda_attempt a WHERE a.panda_id = j.panda_id AND a.pilot_id = $2)
ORDER BY j.panda_id
"""

# A page looks at so many jobs and no more, however few of them are wanted.
PAGE = f"""
SELECT j.panda_id, j.attempt_nr, j.status, j.task_id, coalesce(s.job_name, j.archived_name) AS job_name, t.owner,
       j.queue, j.priority, j.max_attempt,
       j.changed_at, j.change_reason AS reason, {_LEFT_S} AS left_s
FROM (SELECT * FROM {anywhere.JOB} AS each WHERE panda_id < $1 ORDER BY panda_id DESC LIMIT $2) AS j
LEFT JOIN panda_job_spec s USING (panda_id) JOIN panda_task t USING (task_id)
WHERE ($3::text[] IS NULL OR t.owner = ANY ($3)) AND ($4::text[] IS NULL OR j.status = ANY ($4))
  AND ($5::text IS NULL OR j.queue = $5)
ORDER BY j.panda_id DESC LIMIT $6
"""  # noqa: S608

PAGE_END = f"""
SELECT min(panda_id) AS last, count(*) AS n
FROM (SELECT panda_id FROM {anywhere.JOB} AS each WHERE panda_id < $1 ORDER BY panda_id DESC LIMIT $2) AS looked_at
"""  # noqa: S608

TASKS = """
SELECT * FROM panda_task
WHERE task_id < $1 AND ($2::text[] IS NULL OR owner = ANY ($2)) AND ($3::text IS NULL OR queue = $3)
  AND ($5::text IS NULL OR submitted_by = $5 AND owner_ti <> '') AND NOT ($6::boolean AND in_archive)
ORDER BY task_id DESC LIMIT $4
"""

TASK_OF_JOB = f"SELECT t.* FROM {anywhere.JOB} AS j JOIN panda_task t USING (task_id) WHERE j.panda_id = $1"  # noqa: S608

LOCK_TASK_OF_JOB = f"{TASK_OF_JOB} FOR UPDATE OF t"

JOB_OWNER = f"""
SELECT t.owner, t.owner_dn, t.queue FROM {anywhere.JOB} AS j JOIN panda_task t USING (task_id) WHERE j.panda_id = $1
"""  # noqa: S608

LAST_LOG = f"""
SELECT a.log_tail, f.blob, f.size
FROM {anywhere.ATTEMPT} AS a
LEFT JOIN panda_file f ON f.panda_id = a.panda_id AND f.attempt_nr = a.attempt_nr AND f.lfn = 'payload.log'
WHERE a.panda_id = $1 ORDER BY a.attempt_nr DESC LIMIT 1
"""  # noqa: S608

LAST_PILOT_LOG = f"""
SELECT f.panda_id, f.lfn, f.size, f.sha256, f.blob, f.url FROM {anywhere.ATTEMPT} AS a
LEFT JOIN panda_file f ON f.panda_id = a.panda_id AND f.attempt_nr = a.attempt_nr AND f.lfn = 'pilot-log.tgz'
WHERE a.panda_id = $1 ORDER BY a.attempt_nr DESC LIMIT 1
"""  # noqa: S608

TASKS_OF = """
SELECT task_id, n_jobs FROM panda_task
WHERE task_id = ANY ($1::bigint[]) AND ($2::text[] IS NULL OR owner = ANY ($2))
ORDER BY task_id
"""
