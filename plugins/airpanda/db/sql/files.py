"""Statements of the file store."""

from airpanda.db.sql import anywhere

LEASE = """
SELECT j.panda_id, j.status, s.spec, c.owner, c.owner_dn, c.fqans
FROM panda_job j JOIN panda_job_spec s USING (panda_id) JOIN panda_credential c USING (credential_id)
WHERE j.panda_id = $1 AND j.attempt_nr = $2 AND j.pilot_id = $3 AND j.lease_digest = $4
"""

# The lease is checked again in the transaction that makes the file visible.
STILL_LEASED = """
SELECT 1 FROM panda_job WHERE panda_id = $1 AND attempt_nr = $2 AND pilot_id = $3 AND lease_digest = $4 FOR SHARE
"""

REPLACED_BLOB = "SELECT blob FROM panda_file WHERE panda_id = $1 AND attempt_nr = $2 AND lfn = $3 FOR UPDATE"

PUT = """
INSERT INTO panda_file (panda_id, attempt_nr, lfn, size, sha256, adler32, access, blob)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (panda_id, attempt_nr, lfn) DO UPDATE
SET size = excluded.size, sha256 = excluded.sha256, adler32 = excluded.adler32, blob = excluded.blob, created_at = now()
"""

# With the owner and the VOMS attributes that the job had, for the decision who may read it.
OUTPUT = f"""
SELECT f.*, t.owner, c.owner_dn, c.fqans
FROM panda_file f
JOIN {anywhere.ATTEMPT} AS a USING (panda_id, attempt_nr)
JOIN {anywhere.JOB} AS j USING (panda_id)
JOIN panda_task t USING (task_id)
JOIN panda_credential c ON c.credential_id = a.credential_id
WHERE f.panda_id = $1 AND f.lfn = $2 AND a.status = 'finished'
ORDER BY f.attempt_nr DESC LIMIT 1
"""  # noqa: S608 - constants

# Of many at once, a row for each in their order; ``lfn`` is NULL where there is none.
OUTPUTS = f"""
SELECT o.lfn, o.access, o.owner_dn, o.fqans
FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS w (panda_id, lfn, nr)
LEFT JOIN LATERAL ({OUTPUT.replace("$1", "w.panda_id").replace("$2", "w.lfn")}) AS o ON true
ORDER BY w.nr
"""  # noqa: S608
