"""What the database enforces itself: job transitions, their log and counts, logs that only grow, and what may leave.

The statements hang on the MetaData (``airflow db migrate`` on an empty database runs ``create_all``) and are run by
the first migration; both take them from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy import Connection, MetaData, event, text

from airpanda.db import states

ILLEGAL_TRANSITION = "PA001"
"""SQLSTATE of a refused transition."""

APPEND_ONLY = "PA002"
"""SQLSTATE of a refused change to a log."""


def _array(values: Iterable[str]) -> str:
    return "ARRAY[" + ", ".join(f"'{value}'" for value in sorted(values)) + "]::text[]"


NOT_TO_LEAVE = "PA003"
"""SQLSTATE of a refused removal."""

AUDIT_DAYS = 90
"""How long the credential log is kept at least, whatever anybody configures."""

ARCHIVE_DAYS = 1
"""How long jobs that have ended are kept at least."""

_WORDS = {
    "<initial>": _array(states.INITIAL),
    "<new attempt>": _array(states.NEW_ATTEMPT),
    "<pairs>": _array(f"{old}>{new}" for old, after in states.SAME_ATTEMPT.items() for new in after),
    "<illegal>": f"'{ILLEGAL_TRANSITION}'",
    "<append only>": f"'{APPEND_ONLY}'",
    "<final>": _array(status for status in states.SAME_ATTEMPT if status.is_final),
    "<stays>": f"'{NOT_TO_LEAVE}'",
    "<audit days>": f"interval '{AUDIT_DAYS} days'",
    "<archive days>": f"interval '{ARCHIVE_DAYS} days'",
}


def _filled(statement: str) -> str:
    for word, value in _WORDS.items():
        statement = statement.replace(word, value)
    return statement


_INSERTED = """
CREATE OR REPLACE FUNCTION panda_job_inserted() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF EXISTS (SELECT FROM fresh WHERE status <> ALL (<initial>) OR attempt_nr <> 1) THEN
        RAISE EXCEPTION 'a job enters the store as pending, defined or activated, at its first attempt'
            USING ERRCODE = <illegal>;
    END IF;
    INSERT INTO panda_job_status_log (panda_id, attempt_nr, new_status, actor, reason)
        SELECT panda_id, attempt_nr, status, changed_by, change_reason FROM fresh;
    INSERT INTO panda_task_delta (task_id, lane, new_status, n)
        SELECT task_id, lane, status, count(*) FROM fresh GROUP BY task_id, lane, status;
    RETURN NULL;
END $body$
"""

_CHANGED = """
CREATE OR REPLACE FUNCTION panda_job_changed() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF NEW.attempt_nr = OLD.attempt_nr THEN
        IF OLD.status || '>' || NEW.status <> ALL (<pairs>) THEN
            RAISE EXCEPTION 'job %, attempt %: % may not follow %', OLD.panda_id, OLD.attempt_nr, NEW.status, OLD.status
                USING ERRCODE = <illegal>;
        END IF;
    ELSIF NEW.attempt_nr <> OLD.attempt_nr + 1 OR NEW.status <> 'activated'
          OR OLD.status <> ALL (<new attempt>) THEN
        RAISE EXCEPTION 'job %: attempt % as % may not follow attempt % as %',
            OLD.panda_id, NEW.attempt_nr, NEW.status, OLD.attempt_nr, OLD.status
            USING ERRCODE = <illegal>;
    END IF;
    NEW.changed_at := now();
    IF NEW.status = 'activated' THEN
        NEW.activated_xid := pg_current_xact_id()::text::bigint;
        IF NEW.attempt_nr > 1 THEN
            NEW.lane := - abs(NEW.lane);
        END IF;
    END IF;
    INSERT INTO panda_job_status_log (panda_id, attempt_nr, old_status, new_status, actor, reason)
        VALUES (NEW.panda_id, NEW.attempt_nr, OLD.status, NEW.status, NEW.changed_by, NEW.change_reason);
    IF NEW.status <> OLD.status THEN
        INSERT INTO panda_task_delta (task_id, lane, old_status, new_status, n)
            VALUES (NEW.task_id, abs(OLD.lane), OLD.status, NEW.status, 1);
        IF abs(NEW.lane) <> abs(OLD.lane) THEN
            INSERT INTO panda_task_delta (task_id, lane, new_status, n)
                VALUES (NEW.task_id, abs(OLD.lane), NEW.status, -1), (NEW.task_id, abs(NEW.lane), NEW.status, 1);
        END IF;
    END IF;
    RETURN NEW;
END $body$
"""

_ONLY_GROWS = """
CREATE OR REPLACE FUNCTION panda_append_only() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    RAISE EXCEPTION '% only grows: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = <append only>;
END $body$
"""

# Only what lies in the archive already, in the same transaction or before it.
_JOB_LEFT = """
CREATE OR REPLACE FUNCTION panda_job_left() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF EXISTS (SELECT FROM gone WHERE status <> ALL (<final>)) THEN
        RAISE EXCEPTION 'a job that is not final does not leave' USING ERRCODE = <stays>;
    END IF;
    IF EXISTS (SELECT FROM gone g
               WHERE NOT EXISTS (SELECT FROM panda_archived_job a WHERE a.panda_id = g.panda_id)) THEN
        RAISE EXCEPTION 'a job leaves into the archive only' USING ERRCODE = <stays>;
    END IF;
    RETURN NULL;
END $body$
"""

_LOG_LEFT = """
CREATE OR REPLACE FUNCTION panda_log_left() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF EXISTS (SELECT FROM gone g WHERE NOT EXISTS (
            SELECT FROM panda_archived_job a
            WHERE a.panda_id = g.panda_id AND a.log @> jsonb_build_array(jsonb_build_object('log_id', g.log_id)))) THEN
        RAISE EXCEPTION '% only grows: what is not in the archive stays', TG_TABLE_NAME
            USING ERRCODE = <append only>;
    END IF;
    RETURN NULL;
END $body$
"""

_AUDIT_LEFT = """
CREATE OR REPLACE FUNCTION panda_audit_left() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF EXISTS (SELECT FROM gone WHERE at > now() - <audit days>) THEN
        RAISE EXCEPTION '% only grows: what is younger than <audit days> stays', TG_TABLE_NAME
            USING ERRCODE = <append only>;
    END IF;
    RETURN NULL;
END $body$
""".replace("than <audit days> stays", f"than {AUDIT_DAYS} days stays")

# Jobs of a panda task that is in the archive whole and has ended for at least a day: retention removes none earlier.
_ARCHIVE_LEFT = """
CREATE OR REPLACE FUNCTION panda_archive_left() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF EXISTS (SELECT FROM (SELECT DISTINCT task_id FROM gone) AS g
               WHERE NOT EXISTS (SELECT FROM panda_task t WHERE t.task_id = g.task_id AND t.in_archive
                                 AND t.ended_at < now() - <archive days>)) THEN
        RAISE EXCEPTION 'a job leaves the archive only with its panda task, a day and more after its end'
            USING ERRCODE = <stays>;
    END IF;
    RETURN NULL;
END $body$
"""

_FUNCTIONS = {
    "panda_job_inserted": _INSERTED,
    "panda_job_changed": _CHANGED,
    "panda_append_only": _ONLY_GROWS,
    "panda_job_left": _JOB_LEFT,
    "panda_log_left": _LOG_LEFT,
    "panda_audit_left": _AUDIT_LEFT,
    "panda_archive_left": _ARCHIVE_LEFT,
}

_TRIGGERS = [
    """
CREATE OR REPLACE TRIGGER panda_job_inserted AFTER INSERT ON panda_job REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION panda_job_inserted()
""",
    """
CREATE OR REPLACE TRIGGER panda_job_changed BEFORE UPDATE OF status, attempt_nr ON panda_job FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.attempt_nr IS DISTINCT FROM NEW.attempt_nr)
    EXECUTE FUNCTION panda_job_changed()
""",
    *(
        f"""
CREATE OR REPLACE TRIGGER {table}_append_only BEFORE UPDATE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION panda_append_only()
"""
        for table in ("panda_credential_audit", "panda_job_status_log", "panda_archived_job")
    ),
    *(
        f"""
CREATE OR REPLACE TRIGGER {table}_left AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION {function}()
"""
        for table, function in (
            ("panda_job", "panda_job_left"),
            ("panda_job_status_log", "panda_log_left"),
            ("panda_credential_audit", "panda_audit_left"),
            ("panda_archived_job", "panda_archive_left"),
        )
    ),
]


def create_statements() -> list[str]:
    """In the order of their running, for after the tables exist."""
    return [_filled(statement) for statement in (*_FUNCTIONS.values(), *_TRIGGERS)]


def drop_statements() -> list[str]:
    """For after the tables are gone, which took the triggers with them."""
    return [f"DROP FUNCTION IF EXISTS {name}()" for name in _FUNCTIONS]


def attach(metadata: MetaData) -> None:
    """Run them whenever the tables are created or dropped through this MetaData."""
    event.listen(metadata, "after_create", _runner(create_statements()))
    event.listen(metadata, "after_drop", _runner(drop_statements()))


def _runner(statements: list[str]) -> Callable[..., None]:
    def run(_target: MetaData, connection: Connection, **_: object) -> None:
        for statement in statements:
            connection.execute(text(statement))

    return run
