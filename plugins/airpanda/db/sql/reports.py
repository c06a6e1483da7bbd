"""Reports of pilots: those that nearly every attempt makes, of many pilots in one statement.

Whoever's row is locked by somebody else, or whose report is anything else, has no row in the answer and is dealt with
alone: nobody waits here while holding the rows of others.
"""

# Changes no indexed column: stays in its page. One that a crash of the database takes back is harmless: the next one is
# due in seconds. So nobody waits for the disk.
HEARTBEATS = """
WITH alive AS MATERIALIZED (
    SELECT s.nr, j.panda_id
    FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::bytea[], $5::text[]) WITH ORDINALITY
        AS s (panda_id, attempt_nr, pilot_id, lease_digest, status, nr)
    JOIN panda_job j ON j.panda_id = s.panda_id AND j.attempt_nr = s.attempt_nr AND j.pilot_id = s.pilot_id
        AND j.lease_digest = s.lease_digest AND j.status = s.status
    FOR UPDATE OF j SKIP LOCKED
)
UPDATE panda_job j SET lease_expires_at = now() + $6::interval
FROM alive a WHERE j.panda_id = a.panda_id
RETURNING a.nr, j.lease_expires_at, j.command,
    (SELECT d.what FROM panda_debug d
     WHERE d.panda_id = j.panda_id AND d.attempt_nr = j.attempt_nr AND d.answered_at IS NULL) AS debug,
    set_config('synchronous_commit', 'off', true)
"""

_NOTES = """
    status = n.status,
    node = CASE WHEN n.node <> '' THEN n.node ELSE a.node END,
    pilot_uid = coalesce(n.pilot_uid, a.pilot_uid),
    account_name = CASE WHEN n.account_name <> '' THEN n.account_name ELSE a.account_name END,
    account_uid = coalesce(n.account_uid, a.account_uid),
    identity_switched = coalesce(n.identity_switched, a.identity_switched),
    exit_code = coalesce(n.exit_code, a.exit_code),
    errors = CASE WHEN n.errors <> '[]' THEN n.errors::jsonb ELSE a.errors END,
    wall_s = coalesce(n.wall_s, a.wall_s), cpu_s = coalesce(n.cpu_s, a.cpu_s),
    max_rss_mib = coalesce(n.max_rss_mib, a.max_rss_mib),
    log_tail = CASE WHEN n.log_tail <> '' THEN n.log_tail ELSE a.log_tail END,
    launcher = coalesce(n.launcher::jsonb, a.launcher),
    started_at = CASE WHEN n.status = 'running' THEN coalesce(a.started_at, now()) ELSE a.started_at END,
    ended_at = CASE WHEN n.is_end THEN now() ELSE a.ended_at END
"""

_SAID = """
SELECT * FROM unnest(
    $1::bigint[], $2::int[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::boolean[], $9::int[],
    $10::text[], $11::float8[], $12::float8[], $13::float8[], $14::text[], $15::boolean[], $16::text[]<more types>
) WITH ORDINALITY AS s (
    panda_id, attempt_nr, status, node, pilot_uid, account_name, account_uid, identity_switched, exit_code,
    errors, wall_s, cpu_s, max_rss_mib, log_tail, is_end, launcher<more names>, nr)
"""


def _said(types: str = "", names: str = "") -> str:
    """The rows of arrays, a report each; with more columns behind them."""
    return _SAID.replace("<more types>", types).replace("<more names>", names)


NOTE_ATTEMPT = f"""
UPDATE panda_attempt a SET {_NOTES}
FROM ({_said()}) AS n
WHERE a.panda_id = n.panda_id AND a.attempt_nr = n.attempt_nr
"""  # noqa: S608 - constants

# How many of a job's outputs are on record for its attempt: others than declared ones are never recorded.
STORED = """
SELECT count(*) FROM panda_file f
WHERE f.panda_id = {0} AND f.attempt_nr = {1} AND f.lfn NOT IN ('payload.log', 'pilot-log.tgz')
"""

# A step ahead, or the good end. ``before``: statuses from which it may be made, with commas around them. An end without
# outputs that the job declares is no good one; of who declares none nothing is asked.
_LEASE = (", $17::bigint[], $18::bytea[], $19::text[]", ", pilot_id, lease_digest, before")
MOVES = f"""
WITH said AS MATERIALIZED ({_said(*_LEASE)}), held AS MATERIALIZED (
    SELECT s.nr, j.panda_id
    FROM said s JOIN panda_job j ON j.panda_id = s.panda_id AND j.attempt_nr = s.attempt_nr AND j.pilot_id = s.pilot_id
        AND j.lease_digest = s.lease_digest AND strpos(s.before, ',' || j.status || ',') > 0
        AND (NOT s.is_end OR j.n_outputs = 0 OR j.n_outputs <= ({STORED.format("j.panda_id", "j.attempt_nr")}))
    FOR UPDATE OF j SKIP LOCKED
), moved AS (
    UPDATE panda_job j
    SET status = s.status, changed_by = 'pilot:' || s.pilot_id, change_reason = '',
        command = CASE WHEN s.is_end THEN '' ELSE j.command END,
        pilot_id = CASE WHEN NOT s.is_end THEN j.pilot_id END,
        lease_digest = CASE WHEN NOT s.is_end THEN j.lease_digest END,
        lease_expires_at = CASE WHEN NOT s.is_end THEN now() + $20::interval END
    FROM held h JOIN said s USING (nr) WHERE j.panda_id = h.panda_id
    RETURNING s.nr, j.panda_id, j.attempt_nr, j.lease_expires_at, j.command
), noted AS (
    UPDATE panda_attempt a SET {_NOTES}
    FROM moved m JOIN said n USING (nr) WHERE a.panda_id = m.panda_id AND a.attempt_nr = m.attempt_nr
)
SELECT m.nr, coalesce(m.lease_expires_at, now()) AS lease_expires_at, m.command,
    (SELECT d.what FROM panda_debug d WHERE m.lease_expires_at IS NOT NULL
       AND d.panda_id = m.panda_id AND d.attempt_nr = m.attempt_nr AND d.answered_at IS NULL) AS debug
FROM moved m
"""  # noqa: S608 - constants

# What a node's score is made of, after the ends are kept: nobody waits for the disk for a count. A pilot whose row
# somebody holds is counted alone.
COUNT_ENDS = """
WITH counted AS MATERIALIZED (
    SELECT p.pilot_id, e.good, e.bad
    FROM unnest($1::bigint[], $2::int[], $3::int[]) AS e (pilot_id, good, bad) JOIN panda_pilot p USING (pilot_id)
    FOR NO KEY UPDATE OF p SKIP LOCKED
)
UPDATE panda_pilot p SET jobs_done = jobs_done + c.good, jobs_failed = jobs_failed + c.bad
FROM counted c WHERE p.pilot_id = c.pilot_id
RETURNING p.pilot_id, set_config('synchronous_commit', 'off', true)
"""

COUNT_ENDS_ALONE = """
UPDATE panda_pilot SET jobs_done = jobs_done + $2, jobs_failed = jobs_failed + $3 WHERE pilot_id = $1
RETURNING set_config('synchronous_commit', 'off', true)
"""
