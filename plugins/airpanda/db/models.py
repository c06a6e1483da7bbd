"""The tables. What the hot path writes is narrow and apart from what is written once.

``panda_job`` holds what changes while a job lives, and the lease; its specification lies in ``panda_job_spec``, its
history in ``panda_attempt`` and ``panda_job_status_log``. Jobs of one panda task have consecutive PandaIDs, so no
index on the task is needed. Jobs by status are counted from ``panda_task_delta`` rows, which the watchdog folds into
``panda_task_count`` and ``panda_lane_count``: transitions of one task never wait for each other.

Waiting jobs stand in lanes (``panda_lane``): all jobs of a lane ask for the same and belong to the same owner, so that
a pilot is matched with lanes and the claim only takes the oldest of one. Keys that only grow (``activated_xid``,
``panda_task_delta.xid``) let every scan begin behind what is taken already, even where a transaction that somebody
holds open keeps the dead rows there.

There are few foreign keys, on purpose: the hot tables are written by statements that already hold the parent's key,
and the logs outlive what they speak of.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from airpanda.db import seeds, triggers
from airpanda.messages import AuditAction, ErrorSource, JobStatus, RetryAction

NOW = text("now()")
JSON_B = JSON().with_variant(JSONB(), "postgresql")

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_ix",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


class Base(DeclarativeBase):
    metadata = metadata
    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy reads a plain mapping
        int: BigInteger(),
        str: Text(),
        bytes: LargeBinary(),
        bool: Boolean(),
        float: Float(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSON_B,
        list[Any]: JSON_B,
    }


XID = text("pg_current_xact_id()::text::bigint")
"""The transaction that writes: grows in the order in which transactions began to write, not in which they ended."""

_HOT = {
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 20000,
    "autovacuum_vacuum_cost_delay": 0,
}


def _one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Credential(Base):
    """A proxy that lies in MyProxy. The passphrase is a Fernet token; the proxy itself is never here."""

    __tablename__ = "panda_credential"
    __table_args__ = (
        UniqueConstraint("server", "username", "cred_name"),
        _one_of("state", "staged", "revoked", "destroyed"),
        _one_of("scope", "job", "task", "user"),
        Index(None, "owner_dn"),
        Index("panda_credential_secret_ix", "expires_at", postgresql_where=text("passphrase <> ''")),
    )
    credential_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    owner: Mapped[str]
    owner_dn: Mapped[str]
    fqans: Mapped[list[Any]]
    server: Mapped[str]
    username: Mapped[str]
    cred_name: Mapped[str]
    passphrase: Mapped[bytes] = mapped_column(comment="Fernet token under core.fernet_key; empty once ended")
    sealed_by: Mapped[str] = mapped_column(comment="which Fernet key: a digest of it")
    retriever_dn: Mapped[str]
    expires_at: Mapped[datetime]
    scope: Mapped[str]
    task_id: Mapped[int | None] = mapped_column(comment="the one panda task it serves, unless its scope is user")
    origin: Mapped[str] = mapped_column(server_default=text("''"))
    ti: Mapped[dict[str, Any] | None]
    state: Mapped[str] = mapped_column(server_default=text("'staged'"))
    registered_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class CredentialAudit(Base):
    """Append-only, held by a trigger. The unique index lets each attempt have one release and no more."""

    __tablename__ = "panda_credential_audit"
    __table_args__ = (
        Index("panda_credential_audit_owner_ix", "owner_dn", "audit_id"),
        Index(
            "panda_credential_audit_released_key",
            "panda_id",
            "attempt_nr",
            unique=True,
            postgresql_where=text("action = 'released'"),
        ),
        _one_of("action", *get_args(AuditAction)),
    )
    audit_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    action: Mapped[str]
    credential_id: Mapped[int | None]
    owner_dn: Mapped[str]
    actor: Mapped[str]
    panda_id: Mapped[int | None]
    attempt_nr: Mapped[int | None] = mapped_column(Integer())
    pilot_id: Mapped[int | None]
    node: Mapped[str] = mapped_column(server_default=text("''"))
    detail: Mapped[str] = mapped_column(server_default=text("''"))


class Owner(Base):
    """What an owner's short name stands for, bound on the word of the owner or of a client that acts for all."""

    __tablename__ = "panda_owner"
    __table_args__ = (UniqueConstraint("dn"),)
    name: Mapped[str] = mapped_column(primary_key=True)
    dn: Mapped[str]
    fqans: Mapped[list[Any]] = mapped_column(comment="VOMS attributes that others may register for the owner")
    bound_by: Mapped[str]
    bound_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Consent(Base):
    """Which submitting client may use an owner's credentials: one (``credential_id``), or all of them (0).

    What is given lies here, what was given and taken back in the audit log.
    """

    __tablename__ = "panda_consent"
    owner_dn: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[str] = mapped_column(primary_key=True)
    credential_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    queues: Mapped[list[Any]] = mapped_column(comment="names; * for every queue")
    until: Mapped[datetime]
    given_by: Mapped[str]
    given_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Ban(Base):
    """Whose jobs are not dispatched any more, from the next claim on: a DN, or everybody with a VOMS attribute."""

    __tablename__ = "panda_ban"
    __table_args__ = (_one_of("kind", "dn", "fqan"),)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    banned_by: Mapped[str]
    banned_at: Mapped[datetime] = mapped_column(server_default=NOW)


class RevocationRow(Base):
    """Bearer tokens refused before their end: one by its identifier, or all of a client or pilot until then."""

    __tablename__ = "panda_revocation"
    __table_args__ = (_one_of("kind", "token", "client", "pilot"),)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    revoked_by: Mapped[str]
    revoked_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime] = mapped_column(comment="when no such token can be valid any more")


class Counter(Base):
    """Blocks of consecutive PandaIDs. Gaps are harmless."""

    __tablename__ = "panda_counter"
    name: Mapped[str] = mapped_column(primary_key=True)
    next_id: Mapped[int]


class Task(Base):
    """A panda task: jobs ``first_panda_id`` to ``first_panda_id + n_jobs - 1``, owned by one Airflow try.

    ``key_digest`` is the SHA-256 of client, owner and the caller's key, ``content_digest`` that of what was submitted.
    From ``archived_at`` on nothing about its jobs changes any more; they have all left when it is ``in_archive``.
    """

    __tablename__ = "panda_task"
    __table_args__ = (
        UniqueConstraint("key_digest"),
        Index(None, "owner", "task_id"),
        Index("panda_task_here_ix", "created_at", "task_id", postgresql_where=text("archived_at IS NULL")),
        Index("panda_task_begun_ix", "task_id", postgresql_where=text("archived_at IS NOT NULL AND NOT in_archive")),
        Index("panda_task_archived_ix", "ended_at", postgresql_where=text("in_archive")),
        CheckConstraint("(archived_at IS NULL) = (ended_at IS NULL)", name="archived"),
        CheckConstraint("archived_at IS NOT NULL OR NOT in_archive", name="in_archive"),
    )
    task_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    task_key: Mapped[str]
    key_digest: Mapped[bytes]
    content_digest: Mapped[bytes]
    task_name: Mapped[str]
    owner: Mapped[str]
    owner_dn: Mapped[str]
    queue: Mapped[str]
    credential_id: Mapped[int]
    first_panda_id: Mapped[int]
    n_jobs: Mapped[int] = mapped_column(Integer())
    generation: Mapped[int] = mapped_column(Integer(), server_default=text("0"), comment="of who asked last")
    ti: Mapped[dict[str, Any]]
    owner_ti: Mapped[str] = mapped_column(comment="the try that may cancel; empty: none")
    submitted_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    archived_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None] = mapped_column(comment="the last change of any of its jobs, once archived")
    in_archive: Mapped[bool] = mapped_column(server_default=text("false"))


class TaskScripts(Base):
    """Scripts that the jobs of a panda task share: the JSON text of a mapping, written once."""

    __tablename__ = "panda_task_scripts"
    task_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    scripts: Mapped[str]


class TaskCount(Base):
    """Jobs by status, as far as folded."""

    __tablename__ = "panda_task_count"
    task_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int]


class TaskDelta(Base):
    """Changes of the counts that are not folded yet. Written by triggers only; ``xid`` is the transaction that did."""

    __tablename__ = "panda_task_delta"
    __table_args__ = ({"postgresql_with": _HOT},)
    xid: Mapped[int] = mapped_column(server_default=XID, primary_key=True, autoincrement=False)
    delta_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    task_id: Mapped[int]
    lane: Mapped[int]
    old_status: Mapped[str | None]
    new_status: Mapped[str]
    n: Mapped[int] = mapped_column(Integer())


class Folded(Base):
    """One row: every delta of a transaction below ``xid`` is folded and gone, but for those of ``still_open``."""

    __tablename__ = "panda_folded"
    __table_args__ = (CheckConstraint("is_only", name="is_only"),)
    is_only: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    xid: Mapped[int]
    still_open: Mapped[list[int]] = mapped_column(ARRAY(BigInteger()))


class Lane(Base):
    """Waiting jobs that are the same to every pilot. Never changed once written; ``digest`` is that of the rest.

    Jobs wait in lane ``lane_id`` for their first attempt, in ``-lane_id`` for another one.
    """

    __tablename__ = "panda_lane"
    __table_args__ = (UniqueConstraint("digest"), Index(None, "queue", "lane_id"))
    lane_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    digest: Mapped[bytes]
    queue: Mapped[str]
    owner: Mapped[str]
    owner_dn: Mapped[str]
    working_group: Mapped[str]
    fqans: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    retriever_dn: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer())
    cores: Mapped[int] = mapped_column(Integer())
    memory_mib: Mapped[int]
    disk_mib: Mapped[int]
    walltime_s: Mapped[int] = mapped_column(Integer())
    features: Mapped[list[str]] = mapped_column(ARRAY(Text()))


class ShareRow(Base):
    """What operators say of an organisation, a working group or an owner (``*``: of each that is not named)."""

    __tablename__ = "panda_share"
    __table_args__ = (
        _one_of("kind", "vo", "working_group", "owner"),
        CheckConstraint("weight > 0", name="weight"),
        CheckConstraint("kind = 'owner' OR priority_offset = 0", name="of_owners"),
    )
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float] = mapped_column(server_default=text("1"), comment="among its siblings")
    max_jobs: Mapped[int | None] = mapped_column(comment="with pilots at once")
    max_cores: Mapped[int | None] = mapped_column(comment="with pilots at once")
    priority_offset: Mapped[int] = mapped_column(
        Integer(), server_default=text("0"), comment="of an owner: added to what its jobs ask for"
    )
    set_by: Mapped[str]
    set_at: Mapped[datetime] = mapped_column(server_default=NOW)


class LaneCount(Base):
    """Jobs of a lane that wait, and that are with pilots, as far as folded."""

    __tablename__ = "panda_lane_count"
    lane_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    waiting: Mapped[int]
    leased: Mapped[int]


class Job(Base):
    """What changes while a job lives. Columns from ``pilot_id`` to ``command`` are the lease.

    ``charged`` counts attempts that used up ``max_attempt``, ``returned`` those that did not. Heartbeats change
    ``lease_expires_at`` only, which no index mentions, so they stay inside their page (heap-only tuples). The watchdog
    goes by ``check_at``, which has an index: never later than its pilot could be suspected, and moved on then where it
    is not. So what is due is only who is suspected, and whose time came in the last seconds.
    """

    __tablename__ = "panda_job"
    __table_args__ = (
        _one_of("status", *JobStatus),
        CheckConstraint(
            "(pilot_id IS NULL) = (lease_digest IS NULL) AND (pilot_id IS NULL) = (lease_expires_at IS NULL)",
            name="lease_whole",
        ),
        CheckConstraint("pilot_id IS NULL OR check_at IS NOT NULL", name="lease_watched"),
        Index(
            "panda_job_claim_ix",
            "lane",
            "activated_xid",
            "panda_id",
            postgresql_where=text("status = 'activated'"),
        ),
        Index("panda_job_check_ix", "check_at", postgresql_where=text("pilot_id IS NOT NULL")),
        {"postgresql_with": {"fillfactor": 70, **_HOT}},
    )
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int]
    credential_id: Mapped[int]
    queue: Mapped[str]
    lane: Mapped[int] = mapped_column(comment="panda_lane.lane_id; below 0 for another attempt")
    activated_xid: Mapped[int] = mapped_column(server_default=XID, comment="the transaction that let it wait")
    status: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer())
    attempt_nr: Mapped[int] = mapped_column(Integer(), server_default=text("1"))
    max_attempt: Mapped[int] = mapped_column(SmallInteger())
    charged: Mapped[int] = mapped_column(SmallInteger(), server_default=text("0"))
    returned: Mapped[int] = mapped_column(SmallInteger(), server_default=text("0"))
    cores: Mapped[int] = mapped_column(Integer())
    memory_mib: Mapped[int]
    disk_mib: Mapped[int]
    walltime_s: Mapped[int] = mapped_column(Integer())
    features: Mapped[list[str]] = mapped_column(ARRAY(Text()), server_default=text("'{}'"))
    n_outputs: Mapped[int] = mapped_column(
        SmallInteger(), server_default=text("0"), comment="without which it does not finish"
    )
    avoid_node: Mapped[str | None] = mapped_column(comment="no pilot there gets it before avoid_until")
    avoid_until: Mapped[datetime | None]
    pilot_id: Mapped[int | None]
    lease_digest: Mapped[bytes | None]
    lease_expires_at: Mapped[datetime | None]
    check_at: Mapped[datetime | None] = mapped_column(comment="when the watchdog looks at the lease next")
    command: Mapped[str] = mapped_column(server_default=text("''"))
    changed_by: Mapped[str]
    change_reason: Mapped[str] = mapped_column(server_default=text("''"))
    changed_at: Mapped[datetime] = mapped_column(server_default=NOW)


class JobSpecRow(Base):
    """What a job is to do: the JSON text of ``messages.JobSpec``, written once."""

    __tablename__ = "panda_job_spec"
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_name: Mapped[str]
    spec: Mapped[str]


class Attempt(Base):
    """One attempt from its lease to its end. ``lease_digest`` recognises a repeated last report."""

    __tablename__ = "panda_attempt"
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt_nr: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    status: Mapped[str]
    pilot_id: Mapped[int]
    lease_digest: Mapped[bytes]
    credential_id: Mapped[int]
    node: Mapped[str] = mapped_column(server_default=text("''"))
    pilot_uid: Mapped[int | None]
    account_name: Mapped[str] = mapped_column(server_default=text("''"))
    account_uid: Mapped[int | None]
    identity_switched: Mapped[bool | None]
    exit_code: Mapped[int | None] = mapped_column(Integer())
    errors: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    sent_at: Mapped[datetime] = mapped_column(server_default=NOW)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    wall_s: Mapped[float | None]
    cpu_s: Mapped[float | None]
    max_rss_mib: Mapped[float | None]
    log_tail: Mapped[str] = mapped_column(server_default=text("''"))
    launcher: Mapped[dict[str, Any] | None]
    why: Mapped[str] = mapped_column(server_default=text("''"), comment="what was decided at its end, by which rules")


class RetryRuleRow(Base):
    """What a known error changes about the next attempt; ``code`` NULL, ``pattern`` and ``queue`` empty: any."""

    __tablename__ = "panda_retry_rule"
    __table_args__ = (_one_of("action", *RetryAction), _one_of("source", *ErrorSource))
    rule_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    source: Mapped[str]
    code: Mapped[int | None]
    pattern: Mapped[str] = mapped_column(server_default=text("''"))
    queue: Mapped[str] = mapped_column(server_default=text("''"))
    action: Mapped[str]
    factor: Mapped[float] = mapped_column(server_default=text("1.5"))
    max_attempt: Mapped[int] = mapped_column(server_default=text("2"))
    is_active: Mapped[bool] = mapped_column(server_default=text("true"), comment="else it only logs")
    expires_at: Mapped[datetime | None]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    set_by: Mapped[str]
    set_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Sample(Base):
    """One measurement of an attempt; a repeated report writes none twice."""

    __tablename__ = "panda_sample"
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt_nr: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    at_s: Mapped[float] = mapped_column(primary_key=True)
    cpu_s: Mapped[float]
    rss_mib: Mapped[float]
    read_mib: Mapped[float]
    written_mib: Mapped[float]
    disk_mib: Mapped[float]
    pss_mib: Mapped[float | None] = mapped_column(comment="NULL: nobody could look")
    processes: Mapped[int] = mapped_column(Integer())


class Debug(Base):
    """What a person last asked an attempt's pilot to show, and its answer. Keyed by attempt: no other one answers."""

    __tablename__ = "panda_debug"
    __table_args__ = (_one_of("what", "tail", "ps", "ls"),)
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt_nr: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    what: Mapped[str]
    asked_by: Mapped[str]
    asked_at: Mapped[datetime] = mapped_column(server_default=NOW)
    output: Mapped[str] = mapped_column(server_default=text("''"))
    answered_at: Mapped[datetime | None]


class JobStatusLog(Base):
    """One row per transition, written by a trigger; append-only."""

    __tablename__ = "panda_job_status_log"
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    log_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    attempt_nr: Mapped[int] = mapped_column(Integer())
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    old_status: Mapped[str | None]
    new_status: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str]


class ArchivedJob(Base):
    """A job that has left the tables which are written all the time: all of it in one row, for looking at.

    ``attempts`` are the rows of ``panda_attempt``, ``log`` those of the status log, ``samples`` those of
    ``panda_sample``, by their columns.
    """

    __tablename__ = "panda_archived_job"
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int]
    job_name: Mapped[str]
    queue: Mapped[str]
    status: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer())
    attempt_nr: Mapped[int] = mapped_column(Integer())
    max_attempt: Mapped[int] = mapped_column(SmallInteger())
    change_reason: Mapped[str]
    changed_at: Mapped[datetime]
    spec: Mapped[str]
    attempts: Mapped[list[Any]]
    log: Mapped[list[Any]]
    samples: Mapped[list[Any]]
    archived_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Removed(Base):
    """Numbers of what retention has removed: from ``first_id`` to ``last_id``, at some time of that day."""

    __tablename__ = "panda_removed"
    __table_args__ = (_one_of("kind", "job", "task"), CheckConstraint("first_id <= last_id", name="range"))
    kind: Mapped[str] = mapped_column(primary_key=True)
    first_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_id: Mapped[int]
    removed_at: Mapped[datetime] = mapped_column(server_default=NOW)


class File(Base):
    """An output or log of one attempt; ``blob`` is its path below the file store, ``url`` where it lies elsewhere."""

    __tablename__ = "panda_file"
    __table_args__ = (UniqueConstraint("blob"), CheckConstraint("(blob IS NULL) = (url <> '')", name="one_place"))
    panda_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt_nr: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    lfn: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    sha256: Mapped[bytes]
    access: Mapped[str]
    blob: Mapped[str | None]
    url: Mapped[str] = mapped_column(server_default=text("''"))
    adler32: Mapped[str] = mapped_column(server_default=text("''"))
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Sandbox(Base):
    """What a client has uploaded as an input of an owner's jobs; ``blob`` is its path below the file store.

    ``used_at``: last uploaded, or asked whether it is there. ``removing``: nobody may refer to it any more.
    """

    __tablename__ = "panda_sandbox"
    __table_args__ = (UniqueConstraint("owner", "sha256"), UniqueConstraint("blob"))
    sandbox_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    owner: Mapped[str]
    sha256: Mapped[bytes]
    size: Mapped[int]
    adler32: Mapped[str]
    blob: Mapped[str]
    uploaded_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    used_at: Mapped[datetime] = mapped_column(server_default=NOW)
    removing: Mapped[bool] = mapped_column(server_default=text("false"))


class TaskSandbox(Base):
    """Whose jobs name which sandbox: what a panda task still needs is not removed."""

    __tablename__ = "panda_task_sandbox"
    __table_args__ = (Index("panda_task_sandbox_task_ix", "task_id"),)
    sandbox_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Batch(Base):
    """Pilots submitted together; written before anything is submitted.

    ``intent_key`` makes a repeated intent this batch again. Whoever holds it (``fence``, until ``held_until``) may
    submit it and record what came of it; nobody else.
    """

    __tablename__ = "panda_batch"
    __table_args__ = (
        UniqueConstraint("tag"),
        UniqueConstraint("intent_key"),
        _one_of("state", "intended", "submitted", "failed", "uncertain"),
        _one_of("purpose", "work", "probe"),
        Index("panda_batch_open_ix", "queue", postgresql_where=text("state IN ('intended', 'uncertain')")),
    )
    batch_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    tag: Mapped[str]
    queue: Mapped[str]
    ce: Mapped[str] = mapped_column(server_default=text("''"))
    state: Mapped[str] = mapped_column(server_default=text("'intended'"))
    purpose: Mapped[str] = mapped_column(server_default=text("'work'"), comment="a probe's pilots get no jobs")
    reason: Mapped[str] = mapped_column(server_default=text("''"))
    ti: Mapped[dict[str, Any] | None]
    intended_by: Mapped[str]
    intent_key: Mapped[str | None]
    fence: Mapped[int] = mapped_column(server_default=text("1"))
    held_until: Mapped[datetime] = mapped_column(server_default=NOW)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Pilot(Base):
    """One pilot and its job at the computing element. Its token is signed, not stored.

    ``state`` is the pilot's own word, ``ce_state`` the computing element's; ``ended_at`` is set when the pilot has
    ended for all we know, and taken back when it speaks after all. ``missing_since``: the computing element does not
    know it.
    """

    __tablename__ = "panda_pilot"
    __table_args__ = (
        _one_of("state", "intended", "submitted", "started", "benched", "finished", "failed", "lost", "cancelled"),
        Index(None, "batch_id"),
        Index("panda_pilot_recent_ix", "queue", "pilot_id"),
        Index("panda_pilot_live_ix", "queue", "pilot_id", postgresql_where=text("ended_at IS NULL")),
    )
    pilot_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    batch_id: Mapped[int]
    queue: Mapped[str]
    ce: Mapped[str] = mapped_column(server_default=text("''"))
    ce_job_id: Mapped[str] = mapped_column(server_default=text("''"))
    state: Mapped[str] = mapped_column(server_default=text("'intended'"))
    ce_state: Mapped[str] = mapped_column(server_default=text("''"))
    node: Mapped[str] = mapped_column(server_default=text("''"))
    pilot_uid: Mapped[int | None]
    dn: Mapped[str] = mapped_column(server_default=text("''"), comment="seen by mutual TLS")
    probe: Mapped[dict[str, Any] | None]
    reason: Mapped[str] = mapped_column(server_default=text("''"))
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    registered_at: Mapped[datetime | None] = mapped_column(comment="when it first said that it can work")
    last_seen_at: Mapped[datetime | None]
    last_job_at: Mapped[datetime | None]
    ce_running_at: Mapped[datetime | None] = mapped_column(comment="when its element first said that it runs")
    missing_since: Mapped[datetime | None]
    cancel_asked_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    jobs_done: Mapped[int] = mapped_column(Integer(), server_default=text("0"))
    jobs_failed: Mapped[int] = mapped_column(Integer(), server_default=text("0"), comment="failed or handed back")
    log_tail: Mapped[str] = mapped_column(server_default=text("''"), comment="of its own log, once fetched")


class FactoryRow(Base):
    """The pilot factory of one queue: who runs it now (``fence``), what it remembers, what it last decided and why."""

    __tablename__ = "panda_factory"
    queue: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(server_default=text("''"))
    fence: Mapped[int] = mapped_column(server_default=text("0"))
    held_until: Mapped[datetime] = mapped_column(server_default=NOW)
    memory: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    decisions: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    cycled_at: Mapped[datetime | None]


class BadNode(Base):
    """A worker node whose pilots of a queue get no jobs for a while."""

    __tablename__ = "panda_bad_node"
    queue: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[datetime]
    reason: Mapped[str]


triggers.attach(metadata)
seeds.attach(metadata)
