"""Statements of batches and pilots."""

INTEND = """
INSERT INTO panda_batch (tag, queue, ti, intended_by, intent_key, purpose, ce, held_until)
VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8::interval)
ON CONFLICT (intent_key) DO NOTHING
RETURNING batch_id
"""

INTEND_PILOTS = """
INSERT INTO panda_pilot (batch_id, queue, ce)
SELECT $1, $2, $4 FROM generate_series(1, $3::int) RETURNING pilot_id
"""

BATCH = "SELECT * FROM panda_batch WHERE batch_id = $1"

LOCK_BATCH = "SELECT *, held_until > now() AS held FROM panda_batch WHERE batch_id = $1 FOR UPDATE"

LOCK_INTENT = "SELECT *, held_until > now() AS held FROM panda_batch WHERE intent_key = $1 FOR UPDATE"

TAKE = """
UPDATE panda_batch SET fence = fence + 1, held_until = now() + $2::interval WHERE batch_id = $1 RETURNING fence
"""

IS_OVER = "SELECT NOT EXISTS (SELECT FROM panda_pilot WHERE batch_id = $1 AND ended_at IS NULL)"

FORGET_KEY = "UPDATE panda_batch SET intent_key = NULL WHERE batch_id = $1"

PILOT_IDS = "SELECT pilot_id FROM panda_pilot WHERE batch_id = $1 ORDER BY pilot_id"

PILOTS = "SELECT * FROM panda_pilot WHERE batch_id = $1 ORDER BY pilot_id"

# What has been submitted stays so. The holder that did not hear an answer lets go: the next one asks the element.
OWN = "UPDATE panda_batch SET ti = $2 WHERE batch_id = $1"

# Whoever changes several pilots locks them in the order of their numbers first: no two ever wait for each other.
LOCK_PILOTS = "SELECT pilot_id FROM panda_pilot WHERE batch_id = $1 ORDER BY pilot_id FOR NO KEY UPDATE"

CANCEL = """
UPDATE panda_pilot SET cancel_asked_at = coalesce(cancel_asked_at, now()), reason = $2
WHERE batch_id = $1 AND ended_at IS NULL
"""

# What was never submitted has nothing to end.
CANCEL_INTENT = """
UPDATE panda_pilot SET state = 'cancelled', ended_at = now()
WHERE batch_id = $1 AND state = 'intended' AND ended_at IS NULL
"""

KEEP_LOG = "UPDATE panda_pilot SET log_tail = $3 WHERE batch_id = $1 AND pilot_id = $2 RETURNING pilot_id"

LOGS = """
SELECT pilot_id, state, reason, log_tail FROM panda_pilot
WHERE batch_id = $1 AND log_tail <> '' ORDER BY pilot_id LIMIT 100
"""

KNOWN_TAGS = "SELECT tag FROM panda_batch WHERE tag = ANY ($1::text[])"

RECORD_BATCH = """
UPDATE panda_batch SET state = $2, ce = $3, reason = $4, held_until = now()
WHERE batch_id = $1 AND state IN ('intended', 'uncertain')
RETURNING batch_id
"""

# A pilot may report itself before its submission is recorded: only what is still intended changes its state.
RECORD_HANDLES = """
UPDATE panda_pilot p
SET ce = $2, ce_job_id = h.handle, state = CASE WHEN p.state = 'intended' THEN 'submitted' ELSE p.state END
FROM unnest($3::bigint[], $4::text[]) AS h (pilot_id, handle)
WHERE p.batch_id = $1 AND p.pilot_id = h.pilot_id
"""

RECORD_FAILURE = """
UPDATE panda_pilot SET ce = $2, state = 'failed', reason = $3, ended_at = now()
WHERE batch_id = $1 AND state = 'intended' AND NOT pilot_id = ANY ($4::bigint[])
"""

# A word from the pilot outranks everything that was concluded without it, but for a cancel or a failed submission.
SEEN = """
UPDATE panda_pilot p
SET last_seen_at = now(), node = $3, dn = CASE WHEN $4 <> '' THEN $4 ELSE dn END,
    registered_at = CASE WHEN state IN ('intended', 'submitted', 'lost') THEN coalesce(registered_at, now())
                         ELSE registered_at END,
    ended_at = CASE WHEN state IN ('intended', 'submitted', 'started', 'lost') THEN NULL ELSE ended_at END,
    state = CASE WHEN state IN ('intended', 'submitted', 'lost') THEN 'started' ELSE state END
WHERE pilot_id = $1 AND queue = $2
RETURNING state, cancel_asked_at IS NOT NULL AS to_end,
          EXISTS (SELECT FROM panda_bad_node n WHERE n.queue = $2 AND n.node = $3 AND n.until > now()) AS bad_node,
          (SELECT b.purpose = 'probe' FROM panda_batch b WHERE b.batch_id = p.batch_id) AS only_probes,
          set_config('synchronous_commit', 'off', true)
"""
# What a crash of the database may take back of it, the pilot says again in a moment: nobody waits for the disk.

REPORT = """
UPDATE panda_pilot p
SET last_seen_at = now(), node = $3, state = $4, pilot_uid = coalesce($5, pilot_uid),
    probe = coalesce($6, probe), reason = $7, dn = CASE WHEN $8 <> '' THEN $8 ELSE dn END,
    registered_at = CASE WHEN $4 = 'started' THEN coalesce(registered_at, now()) ELSE registered_at END,
    ended_at = CASE WHEN $4 = 'finished' THEN coalesce(ended_at, now()) ELSE NULL END
WHERE pilot_id = $1 AND queue = $2 AND (state NOT IN ('finished', 'failed', 'cancelled') OR state = $4)
RETURNING state, (SELECT b.purpose = 'probe' FROM panda_batch b WHERE b.batch_id = p.batch_id) AS only_probes
"""

# A cancelled pilot ends after the cancel: its last word says so, and nothing more.
LAST_WORD = """
UPDATE panda_pilot
SET last_seen_at = now(), probe = coalesce($3, probe), ended_at = coalesce(ended_at, now())
WHERE pilot_id = $1 AND queue = $2 AND state = 'cancelled'
"""

# $3 final states of the computing element, $4 how long a pilot may be silent, $5 how long an element may not know it.
# `fresh`: the pilot itself was heard of lately, or holds a job whose lease runs. The leases are read at most once, and
# only where an element contradicts a pilot that does not ask for work.
OBSERVE = """
WITH locked AS MATERIALIZED (
    SELECT pilot_id, state, registered_at, last_seen_at, missing_since, cancel_asked_at FROM panda_pilot
    WHERE pilot_id = ANY ($2::bigint[]) AND queue = $1 AND ended_at IS NULL
    ORDER BY pilot_id FOR NO KEY UPDATE
), said AS (
    SELECT p.pilot_id, p.state, p.registered_at, s.ce_state, s.reason, s.asked,
           CASE WHEN p.last_seen_at > now() - $4::interval THEN true
                WHEN s.ce_state = 'unknown' OR s.ce_state = ANY ($3::text[]) THEN p.pilot_id IN (
                    SELECT j.pilot_id FROM panda_job j WHERE j.pilot_id IS NOT NULL AND j.lease_expires_at > now())
                ELSE false END AS fresh,
           CASE WHEN s.ce_state = 'unknown' THEN coalesce(p.missing_since, now())
                WHEN s.ce_state = '' THEN p.missing_since END AS missing_since,
           coalesce(p.cancel_asked_at, CASE WHEN s.asked THEN now() END) AS cancel_asked_at
    FROM unnest($2::bigint[], $6::text[], $7::text[], $8::boolean[]) AS s (pilot_id, ce_state, reason, asked)
    JOIN locked p ON p.pilot_id = s.pilot_id
), judged AS (
    SELECT *, CASE
        WHEN ce_state = 'unknown'
            THEN NOT fresh AND (cancel_asked_at IS NOT NULL OR missing_since <= now() - $5::interval)
        ELSE ce_state = ANY ($3::text[]) AND (NOT fresh OR cancel_asked_at IS NOT NULL) END AS over
    FROM said
)
UPDATE panda_pilot p
SET ce_state = CASE WHEN j.ce_state <> '' THEN j.ce_state ELSE p.ce_state END,
    ce_running_at = CASE WHEN j.ce_state = 'running' THEN coalesce(p.ce_running_at, now()) ELSE p.ce_running_at END,
    missing_since = j.missing_since, cancel_asked_at = j.cancel_asked_at,
    ended_at = CASE WHEN j.over THEN now() END,
    reason = CASE WHEN j.over AND j.reason <> '' THEN j.reason ELSE p.reason END,
    state = CASE
        WHEN NOT j.over THEN p.state
        WHEN j.ce_state = 'cancelled' OR j.cancel_asked_at IS NOT NULL THEN 'cancelled'
        WHEN j.ce_state IN ('done', 'timeout') AND j.registered_at IS NOT NULL THEN 'finished'
        WHEN j.ce_state IN ('unknown', 'lost') THEN 'lost'
        ELSE 'failed' END
FROM judged j
WHERE p.pilot_id = j.pilot_id
RETURNING p.state
"""

LOST = """
WITH silent AS MATERIALIZED (
    SELECT pilot_id FROM panda_pilot
    WHERE pilot_id = ANY ($1::bigint[]) AND state = 'started' AND last_seen_at < now() - $3::interval
    ORDER BY pilot_id FOR NO KEY UPDATE
)
UPDATE panda_pilot p SET state = 'lost', reason = $2 FROM silent s WHERE p.pilot_id = s.pilot_id
"""
