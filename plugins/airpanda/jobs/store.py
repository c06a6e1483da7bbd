"""What pilots and owners do with jobs: claim, report, kill, retry. Every public method is one transaction unless it
says otherwise. The end of an attempt is in ``ends``, what happens when nobody does anything in ``upkeep``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeGuard

from airpanda.core.clock import to_wire
from airpanda.core.errors import AirpandaError, ArchivedError, ConfigurationError, RequestError, StaleReportError
from airpanda.core.secret import Secret
from airpanda.credentials.audit import note_use
from airpanda.credentials.errors import UnreadableCredentialError
from airpanda.credentials.registry import CredentialRegistry, find
from airpanda.db.pool import Database, translated, values_refused
from airpanda.db.sql import jobs as sql
from airpanda.db.sql import reports as reports_sql
from airpanda.jobs import observed
from airpanda.jobs.board import Boards
from airpanda.jobs.claims import Claims
from airpanda.jobs.ends import AttemptEnds, held
from airpanda.jobs.lanes import follow_credential
from airpanda.jobs.progress import counts_of, progress_of
from airpanda.jobs.removed import not_found
from airpanda.jobs.reports import Lease, Reports, notes
from airpanda.jobs.rules import (
    NOT_STORED,
    Ends,
    after_report,
    good_node,
    not_handed_over,
    not_stored,
    summary,
)
from airpanda.jobs.silence import Silence
from airpanda.messages import (
    AcquiredJob,
    DebugWhat,
    ErrorSource,
    JobReport,
    JobStatus,
    KillRequest,
    PilotOffer,
    ReportReply,
    TaskInstanceKey,
    TaskProgress,
)

_END_OF_REPORT = {
    "finished": {"finished"},
    "failed": {"failed", "cancelled"},
    "cancelled": {"failed", "cancelled"},
    "activated": {"failed", "cancelled"},
}


_MAY_WAIT_AGAIN = frozenset({"activated", "failed", "cancelled"})
"""Reports after which a job may wait for its next attempt."""


@dataclass(frozen=True)
class _Answer:
    """``good_node``: what the end of an attempt says of its node; None: nothing, or the attempt has not ended now."""

    reply: ReportReply
    good_node: bool | None = None


def owner_of(ti: TaskInstanceKey) -> str:
    """The try that owns a panda task, for compare-and-set."""
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}#{ti.try_number}#{ti.ti_id}"


class JobStore:
    """Jobs in PostgreSQL. ``silence`` says when a pilot is suspected, and when its job is taken from it."""

    def __init__(
        self,
        database: Database,
        credentials: CredentialRegistry,
        boards: Boards,
        ends: AttemptEnds,
        *,
        silence: Silence,
        heartbeat: timedelta,
    ) -> None:
        self._database = database
        self._ends = ends
        self._boards = boards
        self._credentials = credentials
        self._silence, self._lease = silence, silence.lease
        self._heartbeat_s = heartbeat.total_seconds()
        self._claims = Claims(
            database, credentials, boards, silence=silence, heartbeat=heartbeat, give_up=self._not_handed_over
        )
        self._reports = Reports(database, lease=silence.lease)

    async def acquire(
        self, offer: PilotOffer, *, pilot_id: int, queue: str, pilot_dn: str | None, token_only: bool = False
    ) -> list[AcquiredJob] | None:
        """Move matching jobs from ``activated`` to ``sent``, leased to this pilot. Never one job to two pilots.

        None: nobody knows that this pilot is to be served. ``PilotRegistry.seen`` says whether it is; then ask again.

        Args:
            pilot_dn: the identity proven by mutual TLS: only jobs whose credential this DN may retrieve.
            token_only: the queue also serves pilots that have proven none, with whatever credential.
        """
        return await self._claims.acquire(
            offer, pilot_id=pilot_id, queue=queue, pilot_dn=pilot_dn, token_only=token_only
        )

    async def _not_handed_over(self, row: Any, error: UnreadableCredentialError) -> None:
        """End an attempt that the pilot never hears of, uncharged: its credential's passphrase opens with no key.

        Should this process end before, the lease runs out. The credential is out of use, and its log says so.
        """
        await self._credentials.revoke_unreadable(error)
        async with self._database.transaction() as connection:
            job = await connection.fetchrow(sql.LOCK_JOB, row["panda_id"])
            if job is not None and (job["attempt_nr"], job["status"]) == (row["attempt_nr"], JobStatus.SENT):
                await self._ends.take(connection, job, not_handed_over(), "service")
        self._boards.changed()

    async def update(self, report: JobReport, *, pilot_id: int) -> ReportReply:
        """Apply a report, renew the lease. A repeat changes nothing.

        Raises:
            InvalidTransitionError: the status may not follow the stored one.
            StaleReportError: attempt, pilot or token does not hold the lease: the reporter must stop its payload.
            RequestError: a value of it cannot be kept.
        """
        lease = Lease(report.job_id, report.attempt_nr, pilot_id, Secret(report.token))
        done = await self._plain(lease, report)
        if done is None:
            with values_refused():
                async with self._database.transaction() as connection:
                    done = await self._apply(connection, lease, report)
        if done.good_node is not None:
            await self._reports.count_end(pilot_id, good=done.good_node)
        if report.job_status in _MAY_WAIT_AGAIN or done.reply.refused:
            self._boards.changed()
        return done.reply

    async def update_many(self, reports: Sequence[JobReport], *, pilot_id: int) -> list[ReportReply | AirpandaError]:
        """Apply reports of one pilot; answer each by its reply, or the error of ``update``.

        What one report breaks is taken back alone. Those of the same attempt are applied in their order.

        Raises:
            ServiceError: the database does not answer; repeat all of them, whatever of them was applied.
        """
        leases = [Lease(each.job_id, each.attempt_nr, pilot_id, Secret(each.token)) for each in reports]
        answers: dict[int, _Answer | AirpandaError] = {}
        n_of = Counter(each.job_id for each in reports)
        single = [n for n, report in enumerate(reports) if n_of[report.job_id] == 1]
        found = await asyncio.gather(*(self._plain(leases[n], reports[n]) for n in single), return_exceptions=True)
        for n, each in zip(single, found, strict=True):
            if _is_its_own(each):
                answers[n] = each
            elif isinstance(each, BaseException):
                raise each
            elif each is not None:
                answers[n] = each
        # Always in the same order, so that two such transactions never wait for each other.
        rest = sorted((n for n in range(len(reports)) if n not in answers), key=lambda n: reports[n].job_id)
        if rest:
            async with self._database.transaction() as connection:
                for n in rest:
                    answers[n] = await self._one_of_many(connection, leases[n], reports[n])
        in_order = [answers[n] for n in range(len(reports))]
        good = [each.good_node for each in in_order if isinstance(each, _Answer) and each.good_node is not None]
        await asyncio.gather(*(self._reports.count_end(pilot_id, good=each) for each in good))
        is_refused = any(isinstance(each, _Answer) and each.reply.refused for each in in_order)
        if is_refused or any(report.job_status in _MAY_WAIT_AGAIN for report in reports):
            self._boards.changed()
        return [each.reply if isinstance(each, _Answer) else each for each in in_order]

    async def _one_of_many(self, connection: Any, lease: Lease, report: JobReport) -> _Answer | AirpandaError:
        try:
            with values_refused(), translated():
                async with connection.transaction():
                    return await self._apply(connection, lease, report)
        except RequestError as error:
            if not _is_its_own(error):
                raise
            return error

    async def kill(self, task_id: int, request: KillRequest, *, actor: str) -> TaskProgress:
        """Cancel what waits at once and tell the pilots of the rest. A repeat changes nothing.

        With ``request.ti`` only while that try still owns the panda task: a late ``on_kill`` of an older try, after a
        newer one adopted the jobs, changes nothing and says so in ``note``.

        Raises:
            NotFoundError: there is no such panda task.
        """
        async with self._database.transaction() as connection:
            task = await connection.fetchrow(sql.LOCK_TASK, task_id)
            if task is None:
                raise await not_found(connection, "task", task_id)
            if request.ti is not None and task["owner_ti"] != owner_of(request.ti):
                note = "another try owns these jobs now: nothing was stopped"
                return await progress_of(connection, task, self._silence.margin, note=note)
            await connection.execute(sql.KILL, *job_range(task), actor, request.reason[:1000])
            return await progress_of(connection, task, self._silence.margin)

    async def retry(self, task_id: int, *, actor: str) -> TaskProgress:
        """A new attempt for every failed, cancelled or closed job, with a fresh budget.

        After the end of the Airflow task these jobs are not that task's any more, until it is cleared: whoever asks
        for them waits for them.

        Raises:
            NotFoundError: there is no such panda task.
            ArchivedError: it is archived, and not all of it finished.
        """
        async with self._database.transaction() as connection:
            task = await connection.fetchrow(sql.LOCK_TASK, task_id)
            if task is None:
                raise await not_found(connection, "task", task_id)
            await demand_here(connection, task)
            await connection.execute(sql.DETACH_TASK, task_id, *job_range(task))
            await try_again(connection, task, task["credential_id"], actor)
            progress = await progress_of(connection, task, self._silence.margin)
        self._boards.changed()
        return progress

    async def settle(self) -> None:
        """Write what may be written a little later; before the end of this process. Raises as ``update``."""
        await self._reports.settle()

    async def _plain(self, lease: Lease, report: JobReport) -> _Answer | None:
        """The answer to what many reports together are: "alive", a step ahead, the good end. None: anything else."""
        with values_refused():
            row = await self._reports.plain(lease, report)
        if row is None:
            return None
        reply = self._reply(row["lease_expires_at"], row["command"], row["debug"])
        return _Answer(reply, True if report.job_status == "finished" else None)

    async def _apply(self, connection: Any, lease: Lease, report: JobReport) -> _Answer:
        row = await connection.fetchrow(sql.LOCK_JOB, lease.panda_id)
        if row is None or not _holds(row, lease):
            return _Answer(await self._repeated(connection, lease, report))
        decision = after_report(held(row), JobStatus(report.job_status), report.errors)
        if report.credential_event:
            await note_use(
                connection,
                report.credential_event,
                credential_id=row["credential_id"],
                lease=lease.key[:3],
                node=report.node,
                detail=summary(report.errors),
            )
        await observed.note(connection, report)
        actor = f"pilot:{lease.pilot_id}"
        lost = await _lost(connection, row, report)
        if lost:
            report = report.model_copy(update={"job_status": "failed", "errors": [not_stored(lost), *report.errors]})
            decision = after_report(held(row), JobStatus.FAILED, report.errors)
        if isinstance(decision, Ends):
            await _write_attempt(connection, report, decision.attempt)
            await self._ends.end(connection, row, decision, actor, report.errors)
            refused = not_stored(lost).diag if lost else ""
            reply = self._reply(await connection.fetchval("SELECT now()"), "", refused=refused)
            return _Answer(reply, good_node(decision, report.errors))
        await _write_attempt(connection, report, decision.status)
        expires_at = await connection.fetchval(
            sql.CHANGE_STATUS, lease.panda_id, decision.status.value, self._lease, actor, summary(report.errors)
        )
        debug = await observed.question(connection, lease.panda_id, lease.attempt_nr)
        return _Answer(self._reply(expires_at, row["command"], debug))

    async def _repeated(self, connection: Any, lease: Lease, report: JobReport) -> ReportReply:
        """The last report of an attempt again, because its reply was lost: answered, not applied."""
        ended = await connection.fetchrow(sql.ATTEMPT_END, *lease.key)
        if ended is not None and ended["status"] in _END_OF_REPORT.get(report.job_status, ()):
            return self._reply(await connection.fetchval("SELECT now()"), "")
        refused = "" if ended is None or report.job_status != "finished" else _why_not_finished(ended["errors"])
        if refused:
            return self._reply(await connection.fetchval("SELECT now()"), "", refused=refused)
        raise StaleReportError(
            f"attempt {lease.attempt_nr} of job {lease.panda_id} is not, or no longer, yours: stop the payload"
        )

    def _reply(
        self, expires_at: datetime, command: str, debug: DebugWhat | None = None, *, refused: str = ""
    ) -> ReportReply:
        return ReportReply(
            command="tobekilled" if command == "tobekilled" else "",
            lease_expires_at=expires_at,
            heartbeat_s=self._heartbeat_s,
            debug=debug or "",
            refused=refused,
        )


def job_range(task: Any) -> tuple[int, int]:
    """First and last PandaID of a panda task."""
    return task["first_panda_id"], task["first_panda_id"] + task["n_jobs"] - 1


async def demand_here(connection: Any, task: Any) -> None:
    """Raises:
    ArchivedError: the panda task is archived, and there is something in it that did not finish.
    """
    if task["archived_at"] is None:
        return
    counts = (await counts_of(connection, [task["task_id"]]))[task["task_id"]]
    left = task["n_jobs"] - counts.get(JobStatus.FINISHED, 0)
    if left:
        raise ArchivedError(
            f"panda task {task['task_id']} is in the archive since {to_wire(task['archived_at'])[:10]}: its {left} jobs"
            " that did not finish can be looked at and are not tried again; run all of it again, in Airflow with"
            " rerun = 'all' in the DAG and a clear of the task, else under another key"
        )


async def open_new_attempts(
    connection: Any, task: Any, credential_id: int, actor: str, reason: str, *, queue: str | None = None
) -> int:
    """A new attempt, at ``queue`` if given, for what is final but not finished, or was told to stop; how many."""
    await connection.execute(sql.CLOSE_KILLED_ATTEMPTS, *job_range(task))
    done = await connection.execute(sql.NEW_ATTEMPTS, *job_range(task), credential_id, actor, reason, queue)
    return int(done.split()[-1])


async def try_again(connection: Any, jobs: Any, credential_id: int, actor: str) -> int:
    """New attempts on request, each at its queue, with the credential that the panda task has by now; how many."""
    n = await open_new_attempts(connection, jobs, credential_id, actor, "retry on request")
    if n:
        await connection.execute(sql.USE_CREDENTIAL, *job_range(jobs), credential_id, None)
        credential = await find(connection, credential_id, None)
        await follow_credential(connection, *job_range(jobs), credential, None, None)
    return n


async def _lost(connection: Any, row: Any, report: JobReport) -> list[str]:
    """Outputs that a report of a good end leaves wanting."""
    if report.job_status != "finished":
        return []
    return await observed.missing(connection, row["panda_id"], row["attempt_nr"], n_outputs=row["n_outputs"])


def _why_not_finished(errors: Sequence[Mapping[str, Any]]) -> str:
    """Of an attempt whose pilot said that it had; empty of any other."""
    is_it = bool(errors) and (errors[0]["source"], errors[0]["code"]) == (ErrorSource.DDM, NOT_STORED)
    return str(errors[0]["diag"]) if is_it else ""


def _is_its_own(error: object) -> TypeGuard[RequestError]:
    """Of one report among many; that the tables are missing is everybody's."""
    return isinstance(error, RequestError) and not isinstance(error, ConfigurationError)


def _holds(row: Any, lease: Lease) -> bool:
    return (row["panda_id"], row["attempt_nr"], row["pilot_id"], row["lease_digest"]) == lease.key


async def _write_attempt(connection: Any, report: JobReport, status: JobStatus) -> None:
    await connection.execute(reports_sql.NOTE_ATTEMPT, *([value] for value in notes(report, status)))
