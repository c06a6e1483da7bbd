"""Statements of batches and pilots."""

INTEND = "INSERT INTO panda_batch (tag, queue, ti, intended_by) VALUES ($1, $2, $3, $4) RETURNING batch_id"

INTEND_PILOTS = """
INSERT INTO panda_pilot (batch_id, queue) SELECT $1, $2 FROM generate_series(1, $3::int) RETURNING pilot_id
"""

BATCH = "SELECT * FROM panda_batch WHERE batch_id = $1"

PILOTS = "SELECT * FROM panda_pilot WHERE batch_id = $1 ORDER BY pilot_id"

RECORD_BATCH = "UPDATE panda_batch SET state = $2, ce = $3, reason = $4 WHERE batch_id = $1 RETURNING batch_id"

# A pilot may report itself before its submission is recorded: only what is still intended changes its state.
RECORD_HANDLES = """
UPDATE panda_pilot p
SET ce = $2, ce_job_id = h.handle, state = CASE WHEN p.state = 'intended' THEN 'submitted' ELSE p.state END
FROM unnest($3::bigint[], $4::text[]) AS h (pilot_id, handle)
WHERE p.batch_id = $1 AND p.pilot_id = h.pilot_id
"""

RECORD_FAILURE = """
UPDATE panda_pilot SET ce = $2, state = 'failed', reason = $3
WHERE batch_id = $1 AND state = 'intended' AND NOT pilot_id = ANY ($4::bigint[])
"""

SEEN = """
UPDATE panda_pilot
SET last_seen_at = now(), node = $3, dn = CASE WHEN $4 <> '' THEN $4 ELSE dn END,
    state = CASE WHEN state IN ('intended', 'submitted', 'lost') THEN 'started' ELSE state END
WHERE pilot_id = $1 AND queue = $2
RETURNING state
"""

REPORT = """
UPDATE panda_pilot
SET last_seen_at = now(), node = $3, state = $4, pilot_uid = coalesce($5, pilot_uid),
    probe = coalesce($6, probe), reason = $7, dn = CASE WHEN $8 <> '' THEN $8 ELSE dn END
WHERE pilot_id = $1 AND queue = $2 AND (state NOT IN ('finished', 'failed') OR state = $4)
RETURNING state
"""

LOST = """
UPDATE panda_pilot SET state = 'lost', reason = $2
WHERE pilot_id = ANY ($1::bigint[]) AND state = 'started' AND last_seen_at < now() - $3::interval
"""
