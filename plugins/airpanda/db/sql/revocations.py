"""Statements of the deny list of bearer tokens."""

REVOKE = """
INSERT INTO panda_revocation (kind, name, reason, revoked_by, expires_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (kind, name) DO UPDATE
SET reason = excluded.reason, revoked_by = excluded.revoked_by, revoked_at = now(), expires_at = excluded.expires_at
"""

IN_FORCE = (
    "SELECT kind, name, reason, revoked_by, revoked_at, expires_at FROM panda_revocation WHERE expires_at > now()"
)

FORGET = "DELETE FROM panda_revocation WHERE expires_at < now() - interval '1 day'"
