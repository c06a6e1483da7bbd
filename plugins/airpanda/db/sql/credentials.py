"""Statements of the credential registry."""

REGISTER = """
INSERT INTO panda_credential (owner, owner_dn, fqans, server, username, cred_name, passphrase, retriever_dn,
                              expires_at, scope, origin, ti, registered_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (server, username, cred_name) DO NOTHING
RETURNING *
"""

BY_NAME = "SELECT * FROM panda_credential WHERE server = $1 AND username = $2 AND cred_name = $3"

BY_ID = "SELECT * FROM panda_credential WHERE credential_id = $1"

# The secret goes with the credential.
DESTROY = """
UPDATE panda_credential SET state = 'destroyed', passphrase = ''
WHERE credential_id = $1 AND state = 'staged' RETURNING *
"""

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

BAN = """
INSERT INTO panda_ban (dn, reason, banned_by) VALUES ($1, $2, $3)
ON CONFLICT (dn) DO UPDATE SET reason = excluded.reason, banned_by = excluded.banned_by
"""

LIFT_BAN = "DELETE FROM panda_ban WHERE dn = $1"

BAN_OF = "SELECT reason FROM panda_ban WHERE dn = $1"
