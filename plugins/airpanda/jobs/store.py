"""The only writer of job status. Every public method is one transaction unless it says otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from airpanda.core.errors import AirpandaError, NotFoundError, RequestError, StaleReportError
from airpanda.core.secret import Secret
from airpanda.credentials.audit import note_use
from airpanda.credentials.errors import UnreadableCredentialError
from airpanda.credentials.registry import CredentialRegistry
from airpanda.db import states
from airpanda.db.pool import Database, translated
from airpanda.db.sql import counts as counts_sql
from airpanda.db.sql import jobs as sql
from airpanda.db.sql import pilots as pilots_sql
from airpanda.db.sql import retry as retry_sql
from airpanda.jobs import observed
from airpanda.jobs.board import Boards, Choice
from airpanda.jobs.lanes import lane_with
from airpanda.jobs.matching import Offered
from airpanda.jobs.retry import Needs, Verdict, bounded, changed, covered, explained, judge, rule_of
from airpanda.jobs.rules import (
    Ends,
    Held,
    after_report,
    after_silence,
    good_node,
    lost_heartbeat,
    not_handed_over,
    summary,
    took_too_long,
)
from airpanda.messages import (
    AcquiredJob,
    DebugWhat,
    JobError,
    JobReport,
    JobSpec,
    JobStatus,
    KillRequest,
    PilotOffer,
    ReportReply,
    TaskInstanceKey,
    TaskProgress,
)

BATCH = 500
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
MAX_CLAIMS = 16
"""Lanes that one request may try; each of them was not empty a moment ago."""

_END_OF_REPORT = {
    "finished": {"finished"},
    "failed": {"failed", "cancelled"},
    "cancelled": {"failed", "cancelled"},
    "activated": {"failed", "cancelled"},
}


_MAY_WAIT_AGAIN = frozenset({"activated", "failed", "cancelled"})
"""Reports after which a job may wait for its next attempt."""

_BEFORE = {
    status.value: [old.value for old in states.LEASED if status in states.SAME_ATTEMPT[old]]
    for status in (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.HOLDING, JobStatus.FINISHED)
}
"""From where a report takes a job a step ahead."""


@dataclass(frozen=True)
class Lease:
    """What fences one attempt: nobody else's reports count."""

    panda_id: int
    attempt_nr: int
    pilot_id: int
    token: Secret[str]

    @property
    def key(self) -> tuple[int, int, int, bytes]:
        return self.panda_id, self.attempt_nr, self.pilot_id, digest(self.token)


@dataclass(frozen=True)
class _Answer:
    """``good_node``: what the end of an attempt says of its node; None: nothing, or the attempt has not ended now."""

    reply: ReportReply
    good_node: bool | None = None


def digest(token: Secret[str]) -> bytes:
    """What is stored of a lease token: it has 256 random bits, so a plain hash keeps it."""
    return hashlib.sha256(token.reveal().encode()).digest()


def owner_of(ti: TaskInstanceKey) -> str:
    """The try that owns a panda task, for compare-and-set."""
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}#{ti.try_number}#{ti.ti_id}"


class JobStore:
    """Jobs in PostgreSQL. ``lease`` is the silence after which a job is taken from its pilot.

    ``most``: what a job of this queue may ask for; None: the queue is not known, nothing is raised.
    """

    def __init__(
        self,
        database: Database,
        credentials: CredentialRegistry,
        boards: Boards,
        *,
        lease: timedelta,
        heartbeat: timedelta,
        most: Callable[[str], Needs | None] = lambda _queue: None,
    ) -> None:
        self._database = database
        self._most = most
        self._boards = boards
        self._credentials = credentials
        self._lease = lease
        self._heartbeat_s = heartbeat.total_seconds()

    async def acquire(
        self, offer: PilotOffer, *, pilot_id: int, queue: str, pilot_dn: str | None, token_only: bool = False
    ) -> list[AcquiredJob]:
        """Move matching jobs from ``activated`` to ``sent``, leased to this pilot. Never one job to two pilots.

        Args:
            pilot_dn: the identity proven by mutual TLS: only jobs whose credential this DN may retrieve.
            token_only: the queue also serves pilots that have proven none, with whatever credential.
        """
        if pilot_dn is None and not token_only:
            return []
        offered = _offered(offer, pilot_dn)
        taken: list[AcquiredJob] = []
        looked_again = False
        for _ in range(MAX_CLAIMS):
            board = await self._boards.current(queue)
            choice = board.choose(offered, offer.n_jobs - len(taken))
            if choice is not None:
                taken += await self._claim(offer, choice, pilot_id, queue, pilot_dn)
            elif looked_again or taken or await self._boards.again(queue) is board:
                break
            else:
                looked_again = True
            if len(taken) == offer.n_jobs:
                break
        return taken

    async def _claim(
        self, offer: PilotOffer, choice: Choice, pilot_id: int, queue: str, pilot_dn: str | None
    ) -> list[AcquiredJob]:
        """At most so many jobs of the chosen lane."""
        tokens = [Secret.random() for _ in range(choice.n)]
        with self._boards.claiming(queue, choice) as positions:
            async with self._database.connection() as connection:
                rows = await connection.fetch(
                    sql.ACQUIRE,
                    choice.candidate.number,
                    *choice.start,
                    pilot_dn,
                    [digest(token) for token in tokens],
                    pilot_id,
                    self._lease,
                    offer.node,
                    self._credentials.key_ids,
                    pilot_dn is None,
                    offer.avoid_owners,
                )
            positions += [(row["activated_xid"], row["panda_id"]) for row in rows]
        jobs: list[AcquiredJob] = []
        for row in rows:
            try:
                jobs.append(self._acquired(row, tokens[row["nr"] - 1]))
            except UnreadableCredentialError as error:
                await self._not_handed_over(row, error)
        return jobs

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
        """
        lease = Lease(report.job_id, report.attempt_nr, pilot_id, Secret(report.token))
        async with self._database.connection() as connection:
            done = await self._at_once(connection, lease, report)
            if done is None:
                async with connection.transaction():
                    done = await self._apply(connection, lease, report)
            await _count(connection, pilot_id, [done])
        if report.job_status in _MAY_WAIT_AGAIN:
            self._boards.changed()
        return done.reply

    async def update_many(self, reports: Sequence[JobReport], *, pilot_id: int) -> list[ReportReply | AirpandaError]:
        """Apply reports of one pilot in one transaction; answer each by its reply, or the error of ``update``.

        What one report breaks is taken back alone.

        Raises:
            ServiceError: the database does not answer; nothing was changed, repeat all of them.
        """
        answers: dict[int, _Answer | AirpandaError] = {}
        # Always in the same order, so that two such transactions never wait for each other.
        order = sorted(range(len(reports)), key=lambda n: reports[n].job_id)
        async with self._database.connection() as connection:
            async with connection.transaction():
                for n in order:
                    answers[n] = await self._one_of_many(connection, pilot_id, reports[n])
                if not all(_is_only_alive(report) for report in reports):
                    await connection.execute(sql.DURABLE)
            await _count(connection, pilot_id, [each for each in answers.values() if isinstance(each, _Answer)])
        if any(report.job_status in _MAY_WAIT_AGAIN for report in reports):
            self._boards.changed()
        in_order = [answers[n] for n in range(len(reports))]
        return [each.reply if isinstance(each, _Answer) else each for each in in_order]

    async def _one_of_many(self, connection: Any, pilot_id: int, report: JobReport) -> _Answer | AirpandaError:
        lease = Lease(report.job_id, report.attempt_nr, pilot_id, Secret(report.token))
        try:
            with translated():
                async with connection.transaction():
                    done = await self._at_once(connection, lease, report)
                    return done or await self._apply(connection, lease, report)
        except RequestError as error:
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
                raise NotFoundError(f"there is no panda task {task_id}")
            if request.ti is not None and task["owner_ti"] != owner_of(request.ti):
                return await progress_of(connection, task, note="another try owns these jobs now: nothing was stopped")
            await connection.execute(sql.KILL, *job_range(task), actor, request.reason[:1000])
            return await progress_of(connection, task)

    async def retry(self, task_id: int, *, actor: str) -> TaskProgress:
        """A new attempt for every failed, cancelled or closed job, with a fresh budget.

        After the end of the Airflow task these jobs are not that task's any more, until it is cleared: whoever asks
        for them waits for them.

        Raises:
            NotFoundError: there is no such panda task.
        """
        async with self._database.transaction() as connection:
            task = await connection.fetchrow(sql.LOCK_TASK, task_id)
            if task is None:
                raise NotFoundError(f"there is no panda task {task_id}")
            await connection.execute(sql.DETACH_TASK, task_id, *job_range(task))
            await open_new_attempts(connection, task, task["credential_id"], actor, "retry on request")
            progress = await progress_of(connection, task)
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

    async def end_overdue(self, longest: Mapping[str, timedelta]) -> list[int]:
        """Take jobs that were in a state for too long from their pilots, alive or not. Safe as ``expire``.

        A job is looked at once in a lease, so that its pilot keeps it for so much longer at most.
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
        """What was due to be looked at and is well is due again when its lease could end; answer how many.

        After ``expire`` and ``end_overdue``, which look only at what is due. Safe as they are.
        """
        async with self._database.connection() as connection:
            done = await connection.execute(sql.LOOKED_AT, MAX_LOOKS)
        return int(done.split()[-1])

    async def close_overdue(self, longest: timedelta) -> int:
        """Close jobs that have waited for too long; answer how many, at most some of each lane."""
        says = f"no pilot has taken it within {int(longest.total_seconds())} s"
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

    async def fold_counts(self) -> None:
        """Fold fresh changes into the counts. They are exact whenever it runs, and without it."""
        async with self._database.transaction() as connection:
            if await connection.fetchval(counts_sql.FOLD_LOCK):
                await connection.execute(counts_sql.FOLD)

    def _acquired(self, row: Any, token: Secret[str]) -> AcquiredJob:
        return AcquiredJob(
            panda_id=row["panda_id"],
            attempt_nr=row["attempt_nr"],
            token=token.reveal(),
            lease_expires_at=row["lease_expires_at"],
            heartbeat_s=self._heartbeat_s,
            owner_dn=row["owner_dn"],
            spec=_as_asked_now(JobSpec.model_validate_json(row["spec"]), row),
            credential=self._credentials.pointer(row),
        )

    async def _at_once(self, connection: Any, lease: Lease, report: JobReport) -> _Answer | None:
        """The answer to what one statement deals with: "alive", a step ahead, the good end. None: anything else."""
        if _is_bare(report):
            row = await connection.fetchrow(sql.HEARTBEAT, *lease.key, report.job_status, self._lease)
            if row is not None:
                return _Answer(self._reply(row["lease_expires_at"], row["command"], row["debug"]))
        before = _BEFORE.get(report.job_status)
        if before is None or not _is_plain(report):
            return None
        status = JobStatus(report.job_status)
        values = (*_notes(report, status), *lease.key[2:], before, f"pilot:{lease.pilot_id}")
        if status.is_final:
            row = await connection.fetchrow(sql.FINISH, *values)
        else:
            row = await connection.fetchrow(sql.MOVE, *values, self._lease)
        if row is None:
            return None
        reply = self._reply(row["lease_expires_at"], row["command"], row["debug"])
        return _Answer(reply, True if status.is_final else None)

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
        if isinstance(decision, Ends):
            await _write_attempt(connection, report, decision.attempt)
            await self._end(connection, row, decision, actor, report.errors)
            reply = self._reply(await connection.fetchval("SELECT now()"), "")
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

    def _reply(self, expires_at: datetime, command: str, debug: DebugWhat | None = None) -> ReportReply:
        return ReportReply(
            command="tobekilled" if command == "tobekilled" else "",
            lease_expires_at=expires_at,
            heartbeat_s=self._heartbeat_s,
            debug=debug or "",
        )


def job_range(task: Any) -> tuple[int, int]:
    """First and last PandaID of a panda task."""
    return task["first_panda_id"], task["first_panda_id"] + task["n_jobs"] - 1


async def open_new_attempts(
    connection: Any, task: Any, credential_id: int, actor: str, reason: str, *, queue: str | None = None
) -> int:
    """A new attempt, at ``queue`` if given, for what is final but not finished, or was told to stop; how many."""
    await connection.execute(sql.CLOSE_KILLED_ATTEMPTS, *job_range(task))
    done = await connection.execute(sql.NEW_ATTEMPTS, *job_range(task), credential_id, actor, reason, queue)
    return int(done.split()[-1])


async def progress_of(connection: Any, task: Any, *, note: str = "") -> TaskProgress:
    """Counts by state; exact, and as cheap for a million jobs as for one."""
    rows = await connection.fetch(counts_sql.COUNTS_OF, [task["task_id"]])
    counts = {JobStatus(row["status"]): row["n"] for row in rows}
    finals = sum(n for status, n in counts.items() if status.is_final)
    return TaskProgress(
        task_id=task["task_id"], counts=counts, total=task["n_jobs"], done=finals == task["n_jobs"], note=note
    )


def _offered(offer: PilotOffer, pilot_dn: str | None) -> Offered:
    return Offered(
        cores=offer.cores,
        memory_mib=offer.memory,
        disk_mib=offer.disk_space,
        walltime_s=offer.remaining_time,
        features=frozenset(offer.features),
        avoid_owners=frozenset(offer.avoid_owners),
        retriever_dn=pilot_dn,
    )


def _as_asked_now(spec: JobSpec, row: Any) -> JobSpec:
    """With what retry rules have raised, and with shared scripts; the job's own script of a name wins."""
    changes: dict[str, Any] = {name: row[name] for name in ("memory_mib", "walltime_s")}
    if row["shared_scripts"]:
        changes["scripts"] = json.loads(row["shared_scripts"]) | spec.scripts
    return spec.model_copy(update=changes)


def _held(row: Any) -> Held:
    return Held(
        status=JobStatus(row["status"]),
        max_attempt=row["max_attempt"],
        charged=row["charged"],
        returned=row["returned"],
        told_to_stop=row["command"] == "tobekilled",
    )


def _is_bare(report: JobReport) -> bool:
    """A heartbeat that says nothing but "alive"."""
    return report.model_fields_set <= {"job_id", "attempt_nr", "token", "job_status", "node"}


def _is_only_alive(report: JobReport) -> bool:
    """Nothing of it would be missed after a crash of the database."""
    return _is_bare(report) and report.job_status not in _END_OF_REPORT


def _is_plain(report: JobReport) -> bool:
    """One that changes nothing but the job and its attempt."""
    return not (report.errors or report.credential_event or report.samples or report.debug_output or report.stored)


def _holds(row: Any, lease: Lease) -> bool:
    return (row["panda_id"], row["attempt_nr"], row["pilot_id"], row["lease_digest"]) == lease.key


async def _count(connection: Any, pilot_id: int, answers: Sequence[_Answer]) -> None:
    """What a node's score is made of. After the reports are kept: nobody waits for the disk for a count."""
    good, bad = (sum(each.good_node is wanted for each in answers) for wanted in (True, False))
    if good or bad:
        await connection.execute(pilots_sql.JOB_ENDED, pilot_id, good, bad)


async def _write_attempt(connection: Any, report: JobReport, status: JobStatus) -> None:
    await connection.execute(sql.NOTE_ATTEMPT, *_notes(report, status))


def _notes(report: JobReport, status: JobStatus) -> tuple[Any, ...]:
    use = report.use
    return (
        report.job_id,
        report.attempt_nr,
        status.value,
        report.node,
        report.pilot_uid,
        report.account_name,
        report.account_uid,
        report.identity_switched,
        report.trans_exit_code,
        [error.model_dump(mode="json") for error in report.errors],
        use.wall_s if use else None,
        use.cpu_s if use else None,
        use.max_rss_mib if use else None,
        report.log_tail,
        status.is_final,
        report.launcher.model_dump() if report.launcher else None,
    )
