"""The first tables, with the triggers of ``airpanda.db.triggers``."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from airpanda.db import seeds, triggers

JSON_B = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")

XID = sa.text("pg_current_xact_id()::text::bigint")
HOT = {
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 20000,
    "autovacuum_vacuum_cost_delay": 0,
}

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "panda_attempt",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt_nr", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("pilot_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_digest", sa.LargeBinary(), nullable=False),
        sa.Column("credential_id", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("pilot_uid", sa.BigInteger(), nullable=True),
        sa.Column("account_name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("account_uid", sa.BigInteger(), nullable=True),
        sa.Column("identity_switched", sa.Boolean(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("errors", JSON_B, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("wall_s", sa.Float(), nullable=True),
        sa.Column("cpu_s", sa.Float(), nullable=True),
        sa.Column("max_rss_mib", sa.Float(), nullable=True),
        sa.Column("log_tail", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("launcher", JSON_B, nullable=True),
        sa.Column(
            "why",
            sa.Text(),
            server_default=sa.text("''"),
            nullable=False,
            comment="what was decided at its end, by which rules",
        ),
        sa.PrimaryKeyConstraint("panda_id", "attempt_nr", name=op.f("panda_attempt_pkey")),
    )
    op.create_table(
        "panda_ban",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("banned_by", sa.Text(), nullable=False),
        sa.Column("banned_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('dn', 'fqan')", name=op.f("panda_ban_kind_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("panda_ban_pkey")),
    )
    op.create_table(
        "panda_bad_node",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "node", name=op.f("panda_bad_node_pkey")),
    )
    op.create_table(
        "panda_batch",
        sa.Column("batch_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("ce", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'intended'"), nullable=False),
        sa.Column(
            "purpose",
            sa.Text(),
            server_default=sa.text("'work'"),
            nullable=False,
            comment="a probe's pilots get no jobs",
        ),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("ti", JSON_B, nullable=True),
        sa.Column("intended_by", sa.Text(), nullable=False),
        sa.Column("intent_key", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state IN ('intended', 'submitted', 'failed', 'uncertain')", name=op.f("panda_batch_state_check")
        ),
        sa.CheckConstraint("purpose IN ('work', 'probe')", name=op.f("panda_batch_purpose_check")),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("panda_batch_pkey")),
        sa.UniqueConstraint("intent_key", name=op.f("panda_batch_intent_key_key")),
        sa.UniqueConstraint("tag", name=op.f("panda_batch_tag_key")),
    )
    op.create_index(
        "panda_batch_open_ix",
        "panda_batch",
        ["queue"],
        unique=False,
        postgresql_where=sa.text("state IN ('intended', 'uncertain')"),
    )
    op.create_table(
        "panda_consent",
        sa.Column("owner_dn", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("credential_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("queues", JSON_B, nullable=False, comment="names; * for every queue"),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("given_by", sa.Text(), nullable=False),
        sa.Column("given_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("owner_dn", "client", "credential_id", name=op.f("panda_consent_pkey")),
    )
    op.create_table(
        "panda_counter",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("next_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("panda_counter_pkey")),
    )
    op.create_table(
        "panda_credential",
        sa.Column("credential_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("owner_dn", sa.Text(), nullable=False),
        sa.Column("fqans", JSON_B, nullable=False),
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("cred_name", sa.Text(), nullable=False),
        sa.Column(
            "passphrase",
            sa.LargeBinary(),
            nullable=False,
            comment="Fernet token under core.fernet_key; empty once ended",
        ),
        sa.Column("sealed_by", sa.Text(), nullable=False, comment="which Fernet key: a digest of it"),
        sa.Column("retriever_dn", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column(
            "task_id",
            sa.BigInteger(),
            nullable=True,
            comment="the one panda task it serves, unless its scope is user",
        ),
        sa.Column("origin", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("ti", JSON_B, nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'staged'"), nullable=False),
        sa.Column("registered_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("scope IN ('job', 'task', 'user')", name=op.f("panda_credential_scope_check")),
        sa.CheckConstraint("state IN ('staged', 'revoked', 'destroyed')", name=op.f("panda_credential_state_check")),
        sa.PrimaryKeyConstraint("credential_id", name=op.f("panda_credential_pkey")),
        sa.UniqueConstraint(
            "server", "username", "cred_name", name=op.f("panda_credential_server_username_cred_name_key")
        ),
    )
    op.create_index(op.f("panda_credential_owner_dn_ix"), "panda_credential", ["owner_dn"], unique=False)
    op.create_index(
        "panda_credential_secret_ix",
        "panda_credential",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("passphrase <> ''"),
    )
    op.create_table(
        "panda_credential_audit",
        sa.Column("audit_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("credential_id", sa.BigInteger(), nullable=True),
        sa.Column("owner_dn", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("panda_id", sa.BigInteger(), nullable=True),
        sa.Column("attempt_nr", sa.Integer(), nullable=True),
        sa.Column("pilot_id", sa.BigInteger(), nullable=True),
        sa.Column("node", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("detail", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint(
            "action IN ('staged', 'released', 'retrieved', 'renewed', 'refused', 'destroyed', 'consented', 'revoked',"
            " 'banned', 'unbanned')",
            name=op.f("panda_credential_audit_action_check"),
        ),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("panda_credential_audit_pkey")),
    )
    op.create_index("panda_credential_audit_owner_ix", "panda_credential_audit", ["owner_dn", "audit_id"], unique=False)
    op.create_index(
        "panda_credential_audit_released_key",
        "panda_credential_audit",
        ["panda_id", "attempt_nr"],
        unique=True,
        postgresql_where=sa.text("action = 'released'"),
    )
    op.create_table(
        "panda_debug",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt_nr", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("output", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("what IN ('tail', 'ps', 'ls')", name=op.f("panda_debug_what_check")),
        sa.PrimaryKeyConstraint("panda_id", "attempt_nr", name=op.f("panda_debug_pkey")),
    )
    op.create_table(
        "panda_factory",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("memory", JSON_B, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("decisions", JSON_B, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("cycled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("queue", name=op.f("panda_factory_pkey")),
    )
    op.create_table(
        "panda_file",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt_nr", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("lfn", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("access", sa.Text(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("adler32", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(blob IS NULL) = (url <> '')", name=op.f("panda_file_one_place_check")),
        sa.PrimaryKeyConstraint("panda_id", "attempt_nr", "lfn", name=op.f("panda_file_pkey")),
        sa.UniqueConstraint("blob", name=op.f("panda_file_blob_key")),
    )
    op.create_table(
        "panda_job",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=False),
        sa.Column("credential_id", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("lane", sa.BigInteger(), nullable=False, comment="panda_lane.lane_id; below 0 for another attempt"),
        sa.Column(
            "activated_xid",
            sa.BigInteger(),
            server_default=XID,
            nullable=False,
            comment="the transaction that let it wait",
        ),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempt_nr", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("max_attempt", sa.SmallInteger(), nullable=False),
        sa.Column("charged", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("returned", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("disk_mib", sa.BigInteger(), nullable=False),
        sa.Column("walltime_s", sa.Integer(), nullable=False),
        sa.Column("features", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column(
            "n_outputs",
            sa.SmallInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="without which it does not finish",
        ),
        sa.Column("avoid_node", sa.Text(), nullable=True, comment="no pilot there gets it before avoid_until"),
        sa.Column("avoid_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pilot_id", sa.BigInteger(), nullable=True),
        sa.Column("lease_digest", sa.LargeBinary(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "check_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the watchdog looks at the lease next",
        ),
        sa.Column("command", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("change_reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'defined', 'assigned', 'activated', 'sent', 'starting', 'running', 'holding',"
            " 'transferring', 'merging', 'finished', 'failed', 'cancelled', 'closed')",
            name=op.f("panda_job_status_check"),
        ),
        sa.CheckConstraint(
            "(pilot_id IS NULL) = (lease_digest IS NULL) AND (pilot_id IS NULL) = (lease_expires_at IS NULL)",
            name=op.f("panda_job_lease_whole_check"),
        ),
        sa.CheckConstraint(
            "pilot_id IS NULL OR check_at IS NOT NULL",
            name=op.f("panda_job_lease_watched_check"),
        ),
        sa.PrimaryKeyConstraint("panda_id", name=op.f("panda_job_pkey")),
        postgresql_with={"fillfactor": 70, **HOT},
    )
    op.create_index(
        "panda_job_claim_ix",
        "panda_job",
        ["lane", "activated_xid", "panda_id"],
        unique=False,
        postgresql_where=sa.text("status = 'activated'"),
    )
    op.create_index(
        "panda_job_check_ix", "panda_job", ["check_at"], unique=False, postgresql_where=sa.text("pilot_id IS NOT NULL")
    )
    op.create_table(
        "panda_job_spec",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("job_name", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("panda_id", name=op.f("panda_job_spec_pkey")),
    )
    op.create_table(
        "panda_job_status_log",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("log_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("attempt_nr", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("old_status", sa.Text(), nullable=True),
        sa.Column("new_status", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("panda_id", "log_id", name=op.f("panda_job_status_log_pkey")),
    )
    op.create_table(
        "panda_lane",
        sa.Column("lane_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("owner_dn", sa.Text(), nullable=False),
        sa.Column("working_group", sa.Text(), nullable=False),
        sa.Column("fqans", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("retriever_dn", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("disk_mib", sa.BigInteger(), nullable=False),
        sa.Column("walltime_s", sa.Integer(), nullable=False),
        sa.Column("features", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("lane_id", name=op.f("panda_lane_pkey")),
        sa.UniqueConstraint("digest", name=op.f("panda_lane_digest_key")),
    )
    op.create_index(op.f("panda_lane_queue_lane_id_ix"), "panda_lane", ["queue", "lane_id"], unique=False)
    op.create_table(
        "panda_lane_count",
        sa.Column("lane_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("waiting", sa.BigInteger(), nullable=False),
        sa.Column("leased", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("lane_id", name=op.f("panda_lane_count_pkey")),
    )
    op.create_table(
        "panda_retry_rule",
        sa.Column("rule_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("code", sa.BigInteger(), nullable=True),
        sa.Column("pattern", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("queue", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("factor", sa.Float(), server_default=sa.text("1.5"), nullable=False),
        sa.Column("max_attempt", sa.BigInteger(), server_default=sa.text("2"), nullable=False),
        sa.Column(
            "is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False, comment="else it only logs"
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "action IN ('retry_here', 'retry_elsewhere', 'more_memory', 'more_time', 'no_retry', 'limit')",
            name=op.f("panda_retry_rule_action_check"),
        ),
        sa.CheckConstraint(
            "source IN ('pilot', 'exe', 'jobDispatcher', 'taskBuffer', 'sup', 'ddm')",
            name=op.f("panda_retry_rule_source_check"),
        ),
        sa.PrimaryKeyConstraint("rule_id", name=op.f("panda_retry_rule_pkey")),
    )
    op.create_table(
        "panda_share",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default=sa.text("1"), nullable=False, comment="among its siblings"),
        sa.Column("max_jobs", sa.BigInteger(), nullable=True, comment="with pilots at once"),
        sa.Column("max_cores", sa.BigInteger(), nullable=True, comment="with pilots at once"),
        sa.Column(
            "priority_offset",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of an owner: added to what its jobs ask for",
        ),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('vo', 'working_group', 'owner')", name=op.f("panda_share_kind_check")),
        sa.CheckConstraint("weight > 0", name=op.f("panda_share_weight_check")),
        sa.CheckConstraint("kind = 'owner' OR priority_offset = 0", name=op.f("panda_share_of_owners_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("panda_share_pkey")),
    )
    op.create_table(
        "panda_folded",
        sa.Column("is_only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("still_open", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.CheckConstraint("is_only", name=op.f("panda_folded_is_only_check")),
        sa.PrimaryKeyConstraint("is_only", name=op.f("panda_folded_pkey")),
    )
    op.create_table(
        "panda_owner",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("dn", sa.Text(), nullable=False),
        sa.Column("fqans", JSON_B, nullable=False, comment="VOMS attributes that others may register for the owner"),
        sa.Column("bound_by", sa.Text(), nullable=False),
        sa.Column("bound_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("panda_owner_pkey")),
        sa.UniqueConstraint("dn", name=op.f("panda_owner_dn_key")),
    )
    op.create_table(
        "panda_pilot",
        sa.Column("pilot_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("ce", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("ce_job_id", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'intended'"), nullable=False),
        sa.Column("ce_state", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("node", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("pilot_uid", sa.BigInteger(), nullable=True),
        sa.Column("dn", sa.Text(), server_default=sa.text("''"), nullable=False, comment="seen by mutual TLS"),
        sa.Column("probe", JSON_B, nullable=True),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "registered_at", sa.DateTime(timezone=True), nullable=True, comment="when it first said that it can work"
        ),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_job_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "ce_running_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when its element first said that it runs",
        ),
        sa.Column("missing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_asked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("jobs_done", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "jobs_failed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="failed or handed back",
        ),
        sa.Column(
            "log_tail",
            sa.Text(),
            server_default=sa.text("''"),
            nullable=False,
            comment="of its own log, once fetched",
        ),
        sa.CheckConstraint(
            "state IN ('intended', 'submitted', 'started', 'benched', 'finished', 'failed', 'lost', 'cancelled')",
            name=op.f("panda_pilot_state_check"),
        ),
        sa.PrimaryKeyConstraint("pilot_id", name=op.f("panda_pilot_pkey")),
    )
    op.create_index(op.f("panda_pilot_batch_id_ix"), "panda_pilot", ["batch_id"], unique=False)
    op.create_index(
        "panda_pilot_live_ix",
        "panda_pilot",
        ["queue", "pilot_id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("panda_pilot_recent_ix", "panda_pilot", ["queue", "pilot_id"], unique=False)
    op.create_table(
        "panda_revocation",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revoked_by", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when no such token can be valid any more",
        ),
        sa.CheckConstraint("kind IN ('token', 'client', 'pilot')", name=op.f("panda_revocation_kind_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("panda_revocation_pkey")),
    )
    op.create_table(
        "panda_sample",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt_nr", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("cpu_s", sa.Float(), nullable=False),
        sa.Column("rss_mib", sa.Float(), nullable=False),
        sa.Column("read_mib", sa.Float(), nullable=False),
        sa.Column("written_mib", sa.Float(), nullable=False),
        sa.Column("disk_mib", sa.Float(), nullable=False),
        sa.Column("pss_mib", sa.Float(), nullable=True, comment="NULL: nobody could look"),
        sa.Column("processes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("panda_id", "attempt_nr", "at_s", name=op.f("panda_sample_pkey")),
    )
    op.create_table(
        "panda_task",
        sa.Column("task_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task_key", sa.Text(), nullable=False),
        sa.Column("key_digest", sa.LargeBinary(), nullable=False),
        sa.Column("content_digest", sa.LargeBinary(), nullable=False),
        sa.Column("task_name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("owner_dn", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("credential_id", sa.BigInteger(), nullable=False),
        sa.Column("first_panda_id", sa.BigInteger(), nullable=False),
        sa.Column("n_jobs", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="of who asked last"),
        sa.Column("ti", JSON_B, nullable=False),
        sa.Column("owner_ti", sa.Text(), nullable=False, comment="the try that may cancel; empty: none"),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the last change of any of its jobs, once archived",
        ),
        sa.Column("in_archive", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("(archived_at IS NULL) = (ended_at IS NULL)", name=op.f("panda_task_archived_check")),
        sa.CheckConstraint("archived_at IS NOT NULL OR NOT in_archive", name=op.f("panda_task_in_archive_check")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("panda_task_pkey")),
        sa.UniqueConstraint("key_digest", name=op.f("panda_task_key_digest_key")),
    )
    op.create_index(op.f("panda_task_owner_task_id_ix"), "panda_task", ["owner", "task_id"], unique=False)
    op.create_index(
        "panda_task_here_ix",
        "panda_task",
        ["created_at", "task_id"],
        unique=False,
        postgresql_where=sa.text("archived_at IS NULL"),
    )
    op.create_index(
        "panda_task_begun_ix",
        "panda_task",
        ["task_id"],
        unique=False,
        postgresql_where=sa.text("archived_at IS NOT NULL AND NOT in_archive"),
    )
    op.create_index(
        "panda_task_archived_ix", "panda_task", ["ended_at"], unique=False, postgresql_where=sa.text("in_archive")
    )
    op.create_table(
        "panda_archived_job",
        sa.Column("panda_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=False),
        sa.Column("job_name", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempt_nr", sa.Integer(), nullable=False),
        sa.Column("max_attempt", sa.SmallInteger(), nullable=False),
        sa.Column("change_reason", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("attempts", JSON_B, nullable=False),
        sa.Column("log", JSON_B, nullable=False),
        sa.Column("samples", JSON_B, nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("panda_id", name=op.f("panda_archived_job_pkey")),
    )
    op.create_table(
        "panda_removed",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("first_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('job', 'task')", name=op.f("panda_removed_kind_check")),
        sa.CheckConstraint("first_id <= last_id", name=op.f("panda_removed_range_check")),
        sa.PrimaryKeyConstraint("kind", "first_id", name=op.f("panda_removed_pkey")),
    )
    op.create_table(
        "panda_sandbox",
        sa.Column("sandbox_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("adler32", sa.Text(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("uploaded_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("removing", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("sandbox_id", name=op.f("panda_sandbox_pkey")),
        sa.UniqueConstraint("owner", "sha256", name=op.f("panda_sandbox_owner_sha256_key")),
        sa.UniqueConstraint("blob", name=op.f("panda_sandbox_blob_key")),
    )
    op.create_table(
        "panda_task_sandbox",
        sa.Column("sandbox_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("sandbox_id", "task_id", name=op.f("panda_task_sandbox_pkey")),
    )
    op.create_index("panda_task_sandbox_task_ix", "panda_task_sandbox", ["task_id"], unique=False)
    op.create_table(
        "panda_task_scripts",
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("scripts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name=op.f("panda_task_scripts_pkey")),
    )
    op.create_table(
        "panda_task_count",
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "status", name=op.f("panda_task_count_pkey")),
    )
    op.create_table(
        "panda_task_delta",
        sa.Column("xid", sa.BigInteger(), autoincrement=False, server_default=XID, nullable=False),
        sa.Column("delta_id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task_id", sa.BigInteger(), nullable=False),
        sa.Column("lane", sa.BigInteger(), nullable=False),
        sa.Column("old_status", sa.Text(), nullable=True),
        sa.Column("new_status", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("xid", "delta_id", name=op.f("panda_task_delta_pkey")),
        postgresql_with=HOT,
    )
    for statement in (*triggers.create_statements(), *seeds.statements()):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("panda_task_delta")
    op.drop_table("panda_folded")
    op.drop_table("panda_share")
    op.drop_table("panda_retry_rule")
    op.drop_table("panda_lane_count")
    op.drop_index(op.f("panda_lane_queue_lane_id_ix"), table_name="panda_lane")
    op.drop_table("panda_lane")
    op.drop_table("panda_task_count")
    op.drop_table("panda_task_scripts")
    op.drop_index("panda_task_sandbox_task_ix", table_name="panda_task_sandbox")
    op.drop_table("panda_task_sandbox")
    op.drop_table("panda_sandbox")
    op.drop_table("panda_removed")
    op.drop_table("panda_archived_job")
    op.drop_index("panda_task_archived_ix", table_name="panda_task", postgresql_where=sa.text("in_archive"))
    op.drop_index(
        "panda_task_begun_ix",
        table_name="panda_task",
        postgresql_where=sa.text("archived_at IS NOT NULL AND NOT in_archive"),
    )
    op.drop_index("panda_task_here_ix", table_name="panda_task", postgresql_where=sa.text("archived_at IS NULL"))
    op.drop_index(op.f("panda_task_owner_task_id_ix"), table_name="panda_task")
    op.drop_table("panda_task")
    op.drop_table("panda_sample")
    op.drop_table("panda_revocation")
    op.drop_index("panda_pilot_recent_ix", table_name="panda_pilot")
    op.drop_index("panda_pilot_live_ix", table_name="panda_pilot", postgresql_where=sa.text("ended_at IS NULL"))
    op.drop_index(op.f("panda_pilot_batch_id_ix"), table_name="panda_pilot")
    op.drop_table("panda_pilot")
    op.drop_table("panda_owner")
    op.drop_table("panda_job_status_log")
    op.drop_table("panda_job_spec")
    op.drop_index("panda_job_check_ix", table_name="panda_job", postgresql_where=sa.text("pilot_id IS NOT NULL"))
    op.drop_index("panda_job_claim_ix", table_name="panda_job", postgresql_where=sa.text("status = 'activated'"))
    op.drop_table("panda_job")
    op.drop_table("panda_file")
    op.drop_table("panda_factory")
    op.drop_table("panda_debug")
    op.drop_index(
        "panda_credential_audit_released_key",
        table_name="panda_credential_audit",
        postgresql_where=sa.text("action = 'released'"),
    )
    op.drop_index("panda_credential_audit_owner_ix", table_name="panda_credential_audit")
    op.drop_table("panda_credential_audit")
    op.drop_index(
        "panda_credential_secret_ix", table_name="panda_credential", postgresql_where=sa.text("passphrase <> ''")
    )
    op.drop_index(op.f("panda_credential_owner_dn_ix"), table_name="panda_credential")
    op.drop_table("panda_credential")
    op.drop_table("panda_counter")
    op.drop_index(
        "panda_batch_open_ix",
        table_name="panda_batch",
        postgresql_where=sa.text("state IN ('intended', 'uncertain')"),
    )
    op.drop_table("panda_batch")
    op.drop_table("panda_bad_node")
    op.drop_table("panda_consent")
    op.drop_table("panda_ban")
    op.drop_table("panda_attempt")
    for statement in triggers.drop_statements():
        op.execute(statement)
