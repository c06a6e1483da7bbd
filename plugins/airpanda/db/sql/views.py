"""Statements of what people and operators look at."""

JOBS = """
SELECT j.panda_id, j.task_id, s.job_name, t.owner, t.owner_dn, j.queue, j.status, j.attempt_nr, j.max_attempt, t.ti,
       j.change_reason AS reason
FROM panda_job j JOIN panda_job_spec s USING (panda_id) JOIN panda_task t USING (task_id)
WHERE j.panda_id BETWEEN $1 AND $2
ORDER BY j.panda_id
"""

ATTEMPTS = "SELECT * FROM panda_attempt WHERE panda_id BETWEEN $1 AND $2 ORDER BY panda_id, attempt_nr DESC"

# Of each job, the files of the newest attempt that finished.
OUTPUTS = """
SELECT f.* FROM panda_file f
JOIN (SELECT panda_id, max(attempt_nr) AS attempt_nr FROM panda_attempt
      WHERE panda_id BETWEEN $1 AND $2 AND status = 'finished' GROUP BY panda_id) AS last
  ON f.panda_id = last.panda_id AND f.attempt_nr = last.attempt_nr
WHERE f.lfn NOT IN ('payload.log', 'pilot-log.tgz')
ORDER BY f.panda_id, f.lfn
"""

JOB_OWNER = """
SELECT t.owner, t.owner_dn, t.queue FROM panda_job j JOIN panda_task t USING (task_id) WHERE j.panda_id = $1
"""

LAST_LOG = """
SELECT a.log_tail, f.blob, f.size
FROM panda_attempt a
LEFT JOIN panda_file f ON f.panda_id = a.panda_id AND f.attempt_nr = a.attempt_nr AND f.lfn = 'payload.log'
WHERE a.panda_id = $1 ORDER BY a.attempt_nr DESC LIMIT 1
"""

LAST_PILOT_LOG = """
SELECT f.panda_id, f.lfn, f.size, f.sha256, f.blob, f.url FROM panda_attempt a
LEFT JOIN panda_file f ON f.panda_id = a.panda_id AND f.attempt_nr = a.attempt_nr AND f.lfn = 'pilot-log.tgz'
WHERE a.panda_id = $1 ORDER BY a.attempt_nr DESC LIMIT 1
"""
