"""Statements of input sandboxes: what clients upload for an owner, under its SHA-256."""

# A repeat keeps what is there, and keeps it for longer; the row is held until the transaction's end.
PUT = """
INSERT INTO panda_sandbox (owner, sha256, size, adler32, blob, uploaded_by) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (owner, sha256) DO UPDATE SET used_at = now()
RETURNING *
"""

# Its content is gone, or about to go.
REPLACE = "UPDATE panda_sandbox SET blob = $2, removing = false WHERE sandbox_id = $1 RETURNING *"

FIND = "SELECT * FROM panda_sandbox WHERE owner = $1 AND sha256 = $2 AND NOT removing"

TOUCH = "UPDATE panda_sandbox SET used_at = now() WHERE owner = $1 AND sha256 = $2 AND NOT removing RETURNING *"

# The key is held until the jobs that name it are there, so that it cannot go meanwhile; others may hold it, too.
HOLD = """
SELECT sandbox_id, sha256 FROM panda_sandbox WHERE owner = $1 AND sha256 = ANY ($2::bytea[]) AND NOT removing
ORDER BY sandbox_id FOR KEY SHARE
"""

REFER = "INSERT INTO panda_task_sandbox (sandbox_id, task_id) SELECT unnest($2::bigint[]), $1"

# --- removal -------------------------------------------------------------------------------------------------------

# What lies in the archive is not tried again and needs no input.
_UNUSED = """
(s.removing OR s.used_at < now() - $1::interval AND NOT EXISTS (
    SELECT FROM panda_task_sandbox r JOIN panda_task t USING (task_id)
    WHERE r.sandbox_id = s.sandbox_id AND t.archived_at IS NULL))
"""

UNUSED = f"""
SELECT s.sandbox_id FROM panda_sandbox s WHERE {_UNUSED} ORDER BY s.sandbox_id LIMIT $2 FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - constants

# Asked again by a statement of its own, which sees who referred to it until the row was held.
MARK = f"""
UPDATE panda_sandbox s SET removing = true WHERE s.sandbox_id = ANY ($2::bigint[]) AND {_UNUSED}
RETURNING s.sandbox_id, s.blob
"""  # noqa: S608

# One that was uploaded again meanwhile has another content and stays.
REMOVE = """
WITH gone AS (
    DELETE FROM panda_sandbox WHERE sandbox_id = ANY ($1::bigint[]) AND removing RETURNING sandbox_id
), references_gone AS (
    DELETE FROM panda_task_sandbox WHERE sandbox_id IN (SELECT sandbox_id FROM gone)
)
SELECT count(*) FROM gone
"""

WOULD_REMOVE = f"SELECT count(*) FROM panda_sandbox s WHERE {_UNUSED}"  # noqa: S608
