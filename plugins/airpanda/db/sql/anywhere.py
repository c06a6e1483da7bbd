"""Jobs and attempts wherever they are, here or in the archive: what the statements of views read.

Conditions on ``panda_id`` reach the index of each table.
"""

JOB = """(
    SELECT panda_id, task_id, queue, status, attempt_nr, max_attempt, priority, change_reason, changed_at,
           lease_expires_at, NULL::text AS archived_name
    FROM panda_job
    UNION ALL
    SELECT panda_id, task_id, queue, status, attempt_nr, max_attempt, priority, change_reason, changed_at,
           NULL::timestamptz, job_name
    FROM panda_archived_job
)"""
"""``archived_name`` is the job's name where it is archived."""

_COLUMNS = (
    "attempt_nr, status, pilot_id, lease_digest, credential_id, node, pilot_uid, account_name, account_uid,"
    " identity_switched, exit_code, errors, sent_at, started_at, ended_at, wall_s, cpu_s, max_rss_mib, log_tail,"
    " launcher, why"
)


def _of(row: str, columns: str) -> str:
    return ", ".join(f"{row}.{name.strip()}" for name in columns.split(","))


ATTEMPT = f"""(
    SELECT panda_id, {_COLUMNS} FROM panda_attempt
    UNION ALL
    SELECT o.panda_id, {_of("r", _COLUMNS)}
    FROM panda_archived_job o, jsonb_populate_recordset(NULL::panda_attempt, o.attempts) AS r
)"""  # noqa: S608 - constants

_MEASURES = "attempt_nr, at_s, cpu_s, rss_mib, read_mib, written_mib, disk_mib, pss_mib, processes"

SAMPLE = f"""(
    SELECT panda_id, {_MEASURES} FROM panda_sample
    UNION ALL
    SELECT o.panda_id, {_of("r", _MEASURES)}
    FROM panda_archived_job o, jsonb_populate_recordset(NULL::panda_sample, o.samples) AS r
)"""  # noqa: S608
