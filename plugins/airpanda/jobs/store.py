"""The only writer of job status. Every public method is one transaction unless it says otherwise."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeGuard

from airpanda.core.clock import to_wire
from airpanda.core.errors import AirpandaError, ArchivedError, ConfigurationError, RequestError, StaleReportError
from airpanda.core.secret import Secret
from airpanda.credentials.audit import note_use
from airpanda.credentials.errors import UnreadableCredentialError
from airpanda.credentials.registry import CredentialRegistry
from airpanda.db.pool import Database, translated, values_refused
from airpanda.db.sql import counts as counts_sql
from airpanda.db.sql import jobs as sql
from airpanda.db.sql import pilots as pilots_sql
from airpanda.db.sql import reports as reports_sql
from airpanda.db.sql import retry as retry_sql
from airpanda.jobs import observed
from airpanda.jobs.board import Boards
from airpanda.jobs.claims import Claims
from airpanda.jobs.lanes import lane_with
from airpanda.jobs.progress import counts_of, progress_of, suspected_of
from airpanda.jobs.removed import not_found
from airpanda.jobs.reports import Lease, Reports, notes
from airpanda.jobs.retry import Needs, Verdict, bounded, changed, covered, explained, judge, rule_of
from airpanda.jobs.rules import (
    NOT_STORED,
    Ends,
    Held,
    after_report,
    after_silence,
    good_node,
    lost_heartbeat,
    not_handed_over,
    not_stored,
    summary,
    took_too_long,
)
from airpanda.jobs.silence import Silence
from airpanda.messages import (
    NOBODY_TOOK_IT,
    AcquiredJob,
    DebugWhat,
    ErrorSource,
    JobError,
    JobReport,
    JobStatus,
    KillRequest,
    PilotOffer,
    ReportReply,
    TaskInstanceKey,
    TaskProgress,
)

BATCH = 500
MANY_CHANGES = 1000
MAX_LOOKS = 5000
_NO_CREDENTIAL = "the owner's credential is gone or ends before the job's time limit: stage a fresh one and retry"
_NO_KEY = (
    "the passphrase of the owner's credential was sealed with a Fernet key that is configured no more: the operators of"
    " this service must put that key back behind the new one, or the owner stage a fresh credential; then retry"
)
_NO_CONSENT = (
    "the owner's consent to this client and queue has been taken back or has ended: the owner must consent again"
    " (airpanda proxy consent); then retry"
)
AVOID_NODE = timedelta(minutes=10)

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
    """Jobs in PostgreSQL. ``silence`` says when a pilot is suspected, and when its job is taken from it.

    ``most``: what a job of this queue may ask for; None: the queue is not known, nothing is raised.
    """

    def __init__(
        self,
        database: Database,
        credentials: CredentialRegistry,
        boards: Boards,
        *,
        silence: Silence,
        heartbeat: timedelta,
        most: Callable[[str], Needs | None] = lambda _queue: None,
    ) -> None:
        self._database = database
        self._most = most
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
                await self._take(connection, job, not_handed_over(), "service")
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
            await open_new_attempts(connection, task, task["credential_id"], actor, "retry on request")
            progress = await progress_of(connection, task, self._silence.margin)
        self._boards.changed()
        return progress

    async def expire(self) -> list[int]:
        """Take jobs from silent pilots; answer their PandaIDs. Safe to run twice at once, and to repeat."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(sql.SILENT, BATCH)
            for row in rows:
                await self._take(connection, row, lost_heartbeat())
            pilots = [row["pilot_id"] for row in rows]
            await connection.execute(pilots_sql.LOST, pilots, "lost heartbeat", self._lease)
        if rows:
            self._boards.changed()
        return [row["panda_id"] for row in rows]

    async def count_suspected(self) -> int:
        """How many jobs are with pilots that are suspected; cheap as long as a watchdog runs."""
        async with self._database.connection() as connection:
            return sum((await suspected_of(connection, None, self._silence.margin)).values())

    async def end_overdue(self, longest: Mapping[str, timedelta]) -> list[int]:
        """Take jobs that were in a state for too long from their pilots, alive or not. Safe as ``expire``.

        A job is looked at when its pilot could be suspected, so that it keeps it for so much longer at most.
        """
        leased = {state: after for state, after in longest.items() if state != JobStatus.ACTIVATED}
        async with self._database.transaction() as connection:
            rows = await connection.fetch(sql.OVERDUE, BATCH, list(leased), list(leased.values()))
            for row in rows:
                status = JobStatus(row["status"])
                await self._take(connection, row, took_too_long(status, int(leased[status].total_seconds())))
        if rows:
            self._boards.changed()
        return [row["panda_id"] for row in rows]

    async def move_checks_on(self) -> int:
        """What was due to be looked at and is well is due again when it could be suspected; answer how many.

        After ``expire`` and ``end_overdue``, which look only at what is due. Safe as they are.
        """
        async with self._database.connection() as connection:
            done = await connection.execute(sql.LOOKED_AT, MAX_LOOKS, self._silence.margin)
        return int(done.split()[-1])

    async def close_overdue(self, longest: timedelta) -> int:
        """Close jobs that have waited for too long; answer how many, at most some of each lane."""
        says = f"{NOBODY_TOOK_IT} {int(longest.total_seconds())} s"
        async with self._database.transaction() as connection:
            done = await connection.execute(sql.CLOSE_OVERDUE, says, BATCH, longest)
        return int(done.split()[-1])

    async def _take(self, connection: Any, row: Any, error: JobError, actor: str = "watchdog") -> None:
        """End the attempt of a pilot that has not said that it has ended."""
        decision = after_silence(_held(row), error)
        await connection.execute(
            sql.CLOSE_SILENT_ATTEMPT,
            row["panda_id"],
            row["attempt_nr"],
            decision.attempt.value,
            [error.model_dump(mode="json")],
        )
        await self._end(connection, row, decision, actor, [error])

    async def close_without_credential(self) -> int:
        """Close waiting jobs whose credential cannot serve them any more, saying why; answer how many.

        The jobs of a banned owner wait: what a mistaken ban stopped goes on when the ban is lifted.
        """
        async with self._database.transaction() as connection:
            done = [
                await connection.execute(sql.CLOSE_WITHOUT_CREDENTIAL, _NO_CREDENTIAL, BATCH),
                await connection.execute(sql.CLOSE_WITHOUT_KEY, _NO_KEY, BATCH, self._credentials.key_ids),
                await connection.execute(sql.CLOSE_WITHOUT_CONSENT, _NO_CONSENT, BATCH),
            ]
        return sum(int(each.split()[-1]) for each in done)

    async def settle(self) -> None:
        """Write what may be written a little later; before the end of this process. Raises as ``update``."""
        await self._reports.settle()

    async def fold_counts(self) -> None:
        """Fold fresh changes into the counts. They are exact whenever it runs, and without it."""
        async with self._database.transaction() as connection:
            if await connection.fetchval(counts_sql.FOLD_LOCK):
                await connection.execute(counts_sql.FOLD)

    async def _plain(self, lease: Lease, report: JobReport) -> _Answer | None:
        """The answer to what many reports together are: "alive", a step ahead, the good end. None: anything else."""
        with values_refused():
            row = await self._reports.plain(lease, report)
        if row is None:
            return None
        reply = self._reply(row["lease_expires_at"], row["command"], row["debug"])
        return _Answer(reply, True if report.job_status == "finished" else None)

    async def keep_counts_short(self) -> None:
        """Fold where so many changes are fresh that reading the counts takes milliseconds."""
        async with self._database.connection() as connection:
            if not await connection.fetchval(counts_sql.IS_LONG, MANY_CHANGES):
                return
        await self.fold_counts()

    async def _apply(self, connection: Any, lease: Lease, report: JobReport) -> _Answer:
        row = await connection.fetchrow(sql.LOCK_JOB, lease.panda_id)
        if row is None or not _holds(row, lease):
            return _Answer(await self._repeated(connection, lease, report))
        decision = after_report(_held(row), JobStatus(report.job_status), report.errors)
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
            decision = after_report(_held(row), JobStatus.FAILED, report.errors)
        if isinstance(decision, Ends):
            await _write_attempt(connection, report, decision.attempt)
            await self._end(connection, row, decision, actor, report.errors)
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

    async def _end(self, connection: Any, row: Any, decision: Ends, actor: str, errors: Sequence[JobError]) -> None:
        """End the attempt as decided, within the retry rules."""
        needs, lane, avoid = Needs(row["memory_mib"], row["walltime_s"]), None, None
        if decision.attempt is JobStatus.FAILED:
            verdict = await self._verdict(connection, row, errors)
            decision = bounded(decision, verdict, charged_before=row["charged"])
            before = needs
            if decision.is_next_attempt:
                needs = changed(needs, verdict, most=self._most(row["queue"]))
            if needs.walltime_s > before.walltime_s:
                left_s = await connection.fetchval(retry_sql.CREDENTIAL_LEFT_S, row["credential_id"])
                verdict, needs = covered(verdict, before, needs, left_s=left_s)
            why = explained(
                decision, verdict, before, needs, charged_before=row["charged"], max_attempt=row["max_attempt"]
            )
            await connection.execute(retry_sql.EXPLAIN_END, row["panda_id"], row["attempt_nr"], why)
            if decision.is_next_attempt and needs != before:
                lane = await lane_with(connection, abs(row["lane"]), needs)
            if decision.is_next_attempt and verdict.is_elsewhere:
                avoid = AVOID_NODE
        await connection.execute(
            sql.END_ATTEMPT,
            row["panda_id"],
            decision.job.value,
            int(decision.is_next_attempt),
            decision.charged,
            decision.returned,
            actor,
            decision.reason,
            needs.memory_mib,
            needs.walltime_s,
            lane,
            avoid,
        )

    async def _verdict(self, connection: Any, row: Any, errors: Sequence[JobError]) -> Verdict:
        rules = [rule_of(each) for each in await connection.fetch(retry_sql.IN_FORCE)] if errors else []
        return judge(rules, errors, queue=row["queue"], now=await connection.fetchval("SELECT now()"))

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


async def _lost(connection: Any, row: Any, report: JobReport) -> list[str]:
    """Outputs that a report of a good end leaves wanting."""
    if report.job_status != "finished":
        return []
    return await observed.missing(connection, row["panda_id"], row["attempt_nr"], n_outputs=row["n_outputs"])


def _why_not_finished(errors: Sequence[Mapping[str, Any]]) -> str:
    """Of an attempt whose pilot said that it had; empty of any other."""
    is_it = bool(errors) and (errors[0]["source"], errors[0]["code"]) == (ErrorSource.DDM, NOT_STORED)
    return str(errors[0]["diag"]) if is_it else ""


def _held(row: Any) -> Held:
    return Held(
        status=JobStatus(row["status"]),
        max_attempt=row["max_attempt"],
        charged=row["charged"],
        returned=row["returned"],
        told_to_stop=row["command"] == "tobekilled",
    )


def _is_its_own(error: object) -> TypeGuard[RequestError]:
    """Of one report among many; that the tables are missing is everybody's."""
    return isinstance(error, RequestError) and not isinstance(error, ConfigurationError)


def _holds(row: Any, lease: Lease) -> bool:
    return (row["panda_id"], row["attempt_nr"], row["pilot_id"], row["lease_digest"]) == lease.key


async def _write_attempt(connection: Any, report: JobReport, status: JobStatus) -> None:
    await connection.execute(reports_sql.NOTE_ATTEMPT, *([value] for value in notes(report, status)))
