"""The claim: jobs of one lane for all pilots that asked for it together."""

from airpanda.db.sql.credentials import BANNED, CONSENTED

# Who asks must be served at all: that is asked here, too, so that a claim is one statement. An ask of whom is not has
# no row in the answer; one that nothing was left for has a row without a job.
# The lane has been matched with the pilots; what may have changed since is asked again here. The index
# panda_job_claim_ix gives the order, beginning where the last claim of this process ended. The subquery on the
# credential is scalar on purpose, so that it is asked for each candidate and never turned into a join over all jobs.
# Specifications and credentials are found once, in ``given``: a join with ``asked``, of which the planner expects one
# row, would look for all of them again for each.
# Rows locked by another claim are skipped, pilots' rows too: nobody who holds one ever waits here.
ACQUIRE = f"""
WITH served AS MATERIALIZED (
    SELECT p.pilot_id, a.nr, a.lease_digest, a.node
    FROM unnest($5::bytea[], $6::bigint[], $8::text[]) WITH ORDINALITY AS a (lease_digest, pilot_id, node, nr)
    JOIN panda_pilot p ON p.pilot_id = a.pilot_id
    WHERE p.queue = $12::text AND p.state = 'started' AND p.cancel_asked_at IS NULL
      AND NOT EXISTS (SELECT FROM panda_bad_node n WHERE n.queue = $12 AND n.node = a.node AND n.until > now())
      AND NOT EXISTS (SELECT FROM panda_batch b WHERE b.batch_id = p.batch_id AND b.purpose = 'probe')
    FOR NO KEY UPDATE OF p SKIP LOCKED
), asked AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY nr) AS place FROM served
), candidate AS MATERIALIZED (
    SELECT j.panda_id
    FROM panda_job j
    WHERE j.lane = $1 AND j.status = 'activated' AND (j.activated_xid, j.panda_id) >= ($2, $3)
      AND (j.avoid_node IS NULL OR j.avoid_node <> ALL ($8::text[]) OR j.avoid_until <= now())
      AND (SELECT c.state = 'staged' AND c.expires_at >= now() + j.walltime_s * interval '1 second'
                  AND ($10::boolean OR c.retriever_dn = $4::text) AND c.sealed_by = ANY ($9::text[])
                  AND (c.scope = 'user' OR c.task_id = j.task_id) AND NOT {BANNED} AND {CONSENTED}
                  AND c.owner_dn <> ALL ($11::text[])
           FROM panda_credential c WHERE c.credential_id = j.credential_id)
    ORDER BY j.activated_xid, j.panda_id
    LIMIT (SELECT count(*) FROM asked)
    FOR UPDATE OF j SKIP LOCKED
), numbered AS (
    SELECT panda_id, row_number() OVER () AS place FROM candidate
), leased AS (
    UPDATE panda_job j
    SET status = 'sent', pilot_id = a.pilot_id, lease_digest = a.lease_digest, lease_expires_at = now() + $7::interval,
        check_at = now() + $13::interval, command = '', changed_by = 'pilot:' || a.pilot_id, change_reason = ''
    FROM numbered n JOIN asked a USING (place) WHERE j.panda_id = n.panda_id
    RETURNING j.panda_id, j.task_id, j.attempt_nr, j.credential_id, j.activated_xid, j.lease_digest, j.lease_expires_at,
              j.memory_mib, j.walltime_s, a.nr, a.pilot_id, a.node
), opened AS (
    INSERT INTO panda_attempt (panda_id, attempt_nr, status, pilot_id, lease_digest, credential_id, node)
    SELECT panda_id, attempt_nr, 'sent', pilot_id, lease_digest, credential_id, node FROM leased
), released AS (
    INSERT INTO panda_credential_audit
        (action, credential_id, owner_dn, actor, panda_id, attempt_nr, pilot_id, node)
    SELECT 'released', l.credential_id, c.owner_dn, 'pilot:' || l.pilot_id, l.panda_id, l.attempt_nr, l.pilot_id, l.node
    FROM leased l JOIN panda_credential c USING (credential_id)
), busy AS (
    UPDATE panda_pilot p
    SET last_job_at = now(), last_seen_at = now(), node = l.node, dn = coalesce($4::text, p.dn)
    FROM (SELECT pilot_id, max(node) AS node FROM leased GROUP BY pilot_id) AS l WHERE p.pilot_id = l.pilot_id
), given AS MATERIALIZED (
    SELECT l.nr, l.panda_id, l.attempt_nr, l.lease_expires_at, l.activated_xid, l.memory_mib, l.walltime_s, s.spec,
           (SELECT t.scripts FROM panda_task_scripts t WHERE t.task_id = l.task_id) AS shared_scripts,
           c.credential_id, c.server, c.username, c.cred_name, c.passphrase, c.owner_dn
    FROM leased l JOIN panda_job_spec s USING (panda_id) JOIN panda_credential c USING (credential_id)
)
SELECT a.nr, g.panda_id, g.attempt_nr, g.lease_expires_at, g.activated_xid, g.memory_mib, g.walltime_s, g.spec,
       g.shared_scripts, g.credential_id, g.server, g.username, g.cred_name, g.passphrase, g.owner_dn
FROM asked a LEFT JOIN given g USING (nr)
"""  # noqa: S608 - constants
