"""Statements of the credential registry: credentials, owners, consents, bans, and the log of all of it."""

REGISTER = """
INSERT INTO panda_credential (owner, owner_dn, fqans, server, username, cred_name, passphrase, sealed_by, retriever_dn,
                              expires_at, scope, origin, ti, registered_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
ON CONFLICT (server, username, cred_name) DO NOTHING
RETURNING *
"""

BIND_OWNER = "INSERT INTO panda_owner (name, dn, fqans, bound_by) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"

OWNER = "SELECT * FROM panda_owner WHERE name = $1"

# The row lock of the update makes concurrent additions take turns: none is lost.
ADD_FQANS = """
UPDATE panda_owner SET fqans = (
    SELECT jsonb_agg(DISTINCT f.fqan ORDER BY f.fqan) FROM jsonb_array_elements_text(fqans || $2::jsonb) AS f (fqan))
WHERE name = $1
"""

BY_NAME = "SELECT * FROM panda_credential WHERE server = $1 AND username = $2 AND cred_name = $3"

BY_ID = "SELECT * FROM panda_credential WHERE credential_id = $1"

STAGED = """
SELECT * FROM panda_credential
WHERE state = 'staged' AND expires_at > now()
  AND ($1::text[] IS NULL OR owner = ANY ($1))
  AND ($2::text IS NULL OR owner = $2)
  AND ($3::text IS NULL OR owner_dn = $3)
  AND ($4::jsonb IS NULL OR ti @> $4)
  AND ($5::timestamptz IS NULL OR expires_at <= $5)
ORDER BY expires_at DESC, credential_id DESC LIMIT $6
"""

# The secret goes with the credential.
END = """
UPDATE panda_credential SET state = $2::text, passphrase = ''
WHERE credential_id = $1 AND state <> 'destroyed' AND state <> $2 RETURNING *
"""

# Of those that have ended by themselves: no claim takes them any more, and what opens them is kept for nobody.
FORGET_EXPIRED = """
UPDATE panda_credential SET passphrase = ''
WHERE credential_id IN (SELECT credential_id FROM panda_credential
                        WHERE passphrase <> '' AND expires_at < now()
                        ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)
"""

# The row lock makes two panda tasks that want the same credential take turns.
BIND = """
UPDATE panda_credential SET task_id = $2
WHERE credential_id = $1 AND (scope = 'user' OR task_id IS NULL OR task_id = $2) RETURNING credential_id
"""

SEALED_BEFORE = """
SELECT credential_id, passphrase FROM panda_credential
WHERE state = 'staged' AND passphrase <> '' AND sealed_by = ANY ($1::text[]) AND sealed_by <> $2
LIMIT $3 FOR UPDATE SKIP LOCKED
"""

SEAL_AGAIN = "UPDATE panda_credential SET passphrase = $2, sealed_by = $3 WHERE credential_id = $1"

AUDIT = """
INSERT INTO panda_credential_audit
    (action, credential_id, owner_dn, actor, panda_id, attempt_nr, pilot_id, node, detail)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

AUDIT_OF_LEASE = """
INSERT INTO panda_credential_audit
    (action, credential_id, owner_dn, actor, panda_id, attempt_nr, pilot_id, node, detail)
SELECT $1, credential_id, owner_dn, 'pilot:' || $4::bigint, $2, $3, $4::bigint, $5, $6
FROM panda_credential WHERE credential_id = $7
"""

READ_AUDIT = """
SELECT a.at, a.action, a.credential_id, a.owner_dn, a.actor, a.panda_id, a.attempt_nr, a.pilot_id, a.node, a.detail
FROM panda_credential_audit a
WHERE ($1::text IS NULL OR a.owner_dn = $1)
  AND ($2::text[] IS NULL OR EXISTS (
        SELECT FROM panda_credential c WHERE c.credential_id = a.credential_id AND c.owner = ANY ($2)))
ORDER BY a.audit_id DESC LIMIT $3
"""

# --- consent: credential_id 0 stands for all credentials of the owner ----------------------------------------------

GIVE_CONSENT = """
INSERT INTO panda_consent (owner_dn, client, credential_id, queues, until, given_by) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (owner_dn, client, credential_id) DO UPDATE
    SET queues = excluded.queues, until = excluded.until, given_by = excluded.given_by, given_at = now()
RETURNING *
"""

END_CONSENTS = """
DELETE FROM panda_consent
WHERE owner_dn = $1 AND ($2::text IS NULL OR client = $2) AND ($3::bigint IS NULL OR credential_id = $3)
RETURNING *
"""

# Those that last longest first: the many that have ended hide none that holds.
CONSENTS_OF = """
SELECT * FROM panda_consent WHERE owner_dn = $1 ORDER BY until DESC, client, credential_id LIMIT 1000
"""

CONSENTS_FOR = """
SELECT queues, until FROM panda_consent
WHERE owner_dn = $1 AND client = $2 AND credential_id IN (0, $3)
"""

CONSENTED = """
EXISTS (SELECT FROM panda_task t JOIN panda_consent s
            ON s.owner_dn = c.owner_dn AND t.submitted_by = 'client:' || s.client
        WHERE t.task_id = j.task_id AND s.credential_id IN (0, c.credential_id)
          AND s.until > now() AND (s.queues ? '*' OR s.queues ? j.queue))
"""
# A condition on a job j and its credential c: what every dispatch asks.

# --- bans ----------------------------------------------------------------------------------------------------------

BAN = """
INSERT INTO panda_ban (kind, name, reason, banned_by) VALUES ($1, $2, $3, $4)
ON CONFLICT (kind, name) DO UPDATE SET reason = excluded.reason, banned_by = excluded.banned_by, banned_at = now()
RETURNING *
"""

LIFT_BAN = "DELETE FROM panda_ban WHERE kind = $1 AND name = $2 RETURNING *"

BANS = "SELECT * FROM panda_ban ORDER BY banned_at DESC, kind, name LIMIT 1000"

_MATCHES = """
(b.kind = 'dn' AND b.name = c.owner_dn
 OR b.kind = 'fqan' AND EXISTS (SELECT FROM jsonb_array_elements_text(c.fqans) AS f (fqan)
                                WHERE f.fqan = b.name OR starts_with(f.fqan, b.name || '/')))
"""
# Whole components only: a ban of /vo/a is none of /vo/ab.

BANNED = f"EXISTS (SELECT FROM panda_ban b WHERE {_MATCHES})"
# A condition on a credential c.

BAN_OF = f"""
SELECT b.name, b.reason FROM panda_credential c JOIN panda_ban b ON {_MATCHES} WHERE c.credential_id = $1 LIMIT 1
"""  # noqa: S608
