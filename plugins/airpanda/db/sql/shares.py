"""Statements of shares. Those who match read ``lanes.SHARES``."""

PUT = """
INSERT INTO panda_share (kind, name, weight, max_jobs, max_cores, priority_offset, set_by)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (kind, name) DO UPDATE
SET weight = excluded.weight, max_jobs = excluded.max_jobs, max_cores = excluded.max_cores,
    priority_offset = excluded.priority_offset, set_by = excluded.set_by, set_at = now()
RETURNING *
"""

END = "DELETE FROM panda_share WHERE kind = $1 AND name = $2 RETURNING *"
