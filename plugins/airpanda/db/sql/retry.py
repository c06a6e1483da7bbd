"""Statements of retry rules."""

IN_FORCE = "SELECT * FROM panda_retry_rule WHERE expires_at IS NULL OR expires_at > now()"

# Those that have ended hide none that is in force.
ALL = "SELECT * FROM panda_retry_rule ORDER BY expires_at DESC NULLS FIRST, rule_id DESC LIMIT 1000"

ONE = "SELECT * FROM panda_retry_rule WHERE rule_id = $1"

ADD = """
INSERT INTO panda_retry_rule (source, code, pattern, queue, action, factor, max_attempt, is_active, expires_at,
                              description, set_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
RETURNING *
"""

END = "UPDATE panda_retry_rule SET expires_at = now() WHERE rule_id = $1 RETURNING *"

CREDENTIAL_LEFT_S = """
SELECT floor(extract(epoch FROM expires_at - now()))::bigint FROM panda_credential WHERE credential_id = $1
"""

EXPLAIN_END = "UPDATE panda_attempt SET why = $3 WHERE panda_id = $1 AND attempt_nr = $2"
