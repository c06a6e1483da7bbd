"""Bulk submission, idempotent by the caller's key; and what a re-submission by another try means."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airpanda.core.errors import ConflictError, CredentialError, NotFoundError, ServiceError
from airpanda.credentials import audit, usable
from airpanda.credentials.registry import CredentialRegistry, find
from airpanda.db.pool import RETRY_AFTER_S, Database
from airpanda.db.sql import counts as counts_sql
from airpanda.db.sql import jobs as sql
from airpanda.jobs.board import Boards
from airpanda.jobs.inputs import demand_inputs
from airpanda.jobs.lanes import follow_credential, gathered, open_lanes, shapes_of
from airpanda.jobs.retry import Needs, raised_s_within
from airpanda.jobs.sandboxes import refer
from airpanda.jobs.store import demand_here, job_range, open_new_attempts, owner_of
from airpanda.messages import NOBODY_TOOK_IT, CredentialScope, JobSubmission, SubmissionReply

_JOB_COLUMNS = (
    "panda_id",
    "task_id",
    "credential_id",
    "queue",
    "lane",
    "status",
    "priority",
    "max_attempt",
    "cores",
    "memory_mib",
    "disk_mib",
    "walltime_s",
    "features",
    "n_outputs",
    "changed_by",
)

MAX_LOOKS = 5


@dataclass(frozen=True)
class Known:
    """Where a panda task's jobs are now, and the queues where a site failed one of them, or no pilot took one."""

    queue: str
    failed_at: frozenset[str]


class Submissions:
    """Writes panda tasks: all of a submission or nothing."""

    def __init__(
        self,
        database: Database,
        credentials: CredentialRegistry,
        boards: Boards,
        *,
        most: Callable[[str], Needs | None] = lambda _queue: None,
        broadest: Callable[[str], CredentialScope] = lambda _queue: CredentialScope.USER,
    ) -> None:
        self._most = most
        self._broadest = broadest
        self._database = database
        self._boards = boards
        self._credentials = credentials

    async def known(self, wanted: JobSubmission, *, client: str) -> Known | None:
        """What is stored under this key of this client, or None."""
        async with self._database.connection() as connection:
            task = await connection.fetchrow(sql.TASK_IF_KNOWN, _key_digest(wanted, f"client:{client}"))
            if task is None:
                return None
            failed = await connection.fetch(sql.FAILED_BY_SITE, *job_range(task), NOBODY_TOOK_IT)
        return Known(task["queue"], frozenset(row["queue"] for row in failed))

    async def waiting(self, queues: Collection[str]) -> dict[str, int]:
        """How many jobs wait at each of these queues."""
        async with self._database.connection() as connection:
            return {row["name"]: row["n"] for row in await connection.fetch(counts_sql.WAITING, list(queues))}

    async def submit(self, wanted: JobSubmission, *, queue: str, client: str, now: datetime) -> SubmissionReply:
        """Store the jobs, ready for the pilots of ``queue``.

        Keys of another client, or for another owner, are others.

        A known key with the same content creates nothing. From the try that owns the jobs it is a repeat; from
        another try it adopts them: what failed or was cancelled gets a new attempt, what finished stays, what runs
        goes on, and everything not yet dispatched uses the credential and the queue given now. Where the submission
        says to start over, the old jobs are stopped and keep their numbers and history; the key names the new ones.
        So it is where the submitter starts over at all, and a run that was deleted and made anew finds the key with
        nothing that is still open.

        Raises:
            NotFoundError: no such credential of this owner.
            RequestError: an input that must be another job's output now does not exist, or is no sandbox of the owner.
            NotAuthorisedError: such an input is not this owner's to read.
            CredentialError: the credential cannot cover the jobs, serves another panda task, or its owner has not
                consented to this client and queue. The refusal stands in the audit log.
            ConflictError: the key is known with other jobs or another DN.
            ArchivedError: its jobs are archived unfinished.
            ServiceError: others start it over all the time; repeat the request.
        """
        try:
            reply = await self._submit_to(wanted.model_copy(update={"queue": queue}), client, now)
        except CredentialError as error:
            async with self._database.connection() as connection:
                await audit.note_refusal(connection, wanted.credential_id, actor=f"client:{client}", reason=str(error))
            raise
        self._boards.changed()
        return reply

    async def _submit_to(self, wanted: JobSubmission, client: str, now: datetime) -> SubmissionReply:
        for _ in range(MAX_LOOKS):
            reply = await self._submit(wanted, client, now)
            if reply is not None:
                return reply
        raise ServiceError(
            f"panda task {wanted.task_key!r} is started over again and again by others: repeat the request later",
            retry_after_s=RETRY_AFTER_S,
        )

    async def _submit(self, wanted: JobSubmission, client: str, now: datetime) -> SubmissionReply | None:
        """None: what the key named was started over by somebody else meanwhile, so that it names something else."""
        actor = f"client:{client}"
        specs = [spec.model_dump_json() for spec in wanted.jobs]
        content = _content_digest(wanted, specs)
        async with self._database.connection() as connection:
            known = await connection.fetchrow(sql.TASK_IF_KNOWN, _key_digest(wanted, actor))
            fresh = known is None or await _starts_over(connection, known, wanted, content)
            first = await connection.fetchval(sql.RESERVE_IDS, len(specs)) if fresh else 0
            async with connection.transaction():
                credential = await _credential(connection, wanted)
                usable.demand_readable(credential, self._credentials.key_ids)
                usable.demand_scope(credential, self._broadest(str(wanted.queue)), queue=str(wanted.queue))
                usable.demand_groups(credential, wanted.jobs)
                usable.demand_lasting(credential, walltime_s=max(spec.walltime_s for spec in wanted.jobs), now=now)
                await usable.demand_allowed(connection, credential, client=client, queue=str(wanted.queue), now=now)
                task_id = None
                if fresh:
                    if wanted.inputs_now:
                        await demand_inputs(connection, wanted.jobs, credential)
                    await _retire(connection, wanted, content, actor)
                    task_id = await _insert_task(connection, wanted, content, credential["owner_dn"], first, actor)
                if task_id is None:
                    most = _most_of(self._most(str(wanted.queue)), wanted, credential, now)
                    return await _resume(connection, wanted, content, credential, actor, most)
                await refer(connection, wanted.jobs, owner=wanted.owner, task_id=task_id)
                await usable.bind(connection, credential, task_id=task_id, n_jobs=len(specs))
                lanes = await _lanes(connection, wanted, credential)
                await _insert_jobs(connection, wanted, specs, lanes, task_id, first, actor)
                if wanted.scripts:
                    await connection.execute(sql.SHARE_SCRIPTS, task_id, json.dumps(wanted.scripts))
        return SubmissionReply(
            task_id=task_id, first_panda_id=first, n_jobs=len(specs), created=True, queue=str(wanted.queue)
        )


async def _credential(connection: Any, wanted: JobSubmission) -> Any:
    try:
        return await find(connection, wanted.credential_id, {wanted.owner})
    except NotFoundError:
        raise NotFoundError(
            f"there is no credential {wanted.credential_id} of owner {wanted.owner!r}: name one that was staged for"
            " this owner"
        ) from None


async def _starts_over(connection: Any, task: Any, wanted: JobSubmission, content: bytes) -> bool:
    """Whether new jobs are meant: a person has asked anew; or the run was deleted and made anew, and nothing runs."""
    if wanted.start_over == "never":
        return False
    if wanted.generation > task["generation"]:
        return wanted.start_over == "always" or task["content_digest"] != content
    return _is_of_another_run(task, wanted) and not await connection.fetchval(sql.ANY_OPEN, *job_range(task))


def _is_of_another_run(task: Any, wanted: JobSubmission) -> bool:
    """A later try of a task instance has a higher number; another identity without one is another task instance."""
    stored = task["ti"]
    return bool(wanted.ti.ti_id) and (
        wanted.ti.ti_id != stored["ti_id"] and wanted.ti.try_number <= stored["try_number"]
    )


async def _retire(connection: Any, wanted: JobSubmission, content: bytes, actor: str) -> None:
    """Stop what the key names and take the key from it, unless somebody else did so meanwhile."""
    task = await connection.fetchrow(sql.TASK_BY_KEY, _key_digest(wanted, actor))
    if task is not None and await _starts_over(connection, task, wanted, content):
        reason = f"started over by try {wanted.ti.try_number}"
        await connection.execute(sql.KILL, *job_range(task), actor, reason)
        await connection.execute(sql.RETIRE_TASK, task["task_id"])


async def _insert_task(
    connection: Any, wanted: JobSubmission, content: bytes, owner_dn: str, first: int, actor: str
) -> int | None:
    """None when somebody else submitted the same key meanwhile."""
    task_id: int | None = await connection.fetchval(
        sql.INSERT_TASK,
        wanted.task_key,
        _key_digest(wanted, actor),
        content,
        wanted.task_name,
        wanted.owner,
        owner_dn,
        wanted.queue,
        wanted.credential_id,
        first,
        len(wanted.jobs),
        wanted.ti.model_dump(),
        owner_of(wanted.ti),
        actor,
        wanted.generation,
    )
    return task_id


def _most_of(there: Needs | None, wanted: JobSubmission, credential: Any, now: datetime) -> Needs | None:
    """What these jobs may ask for at a queue after all that was raised: no less than at first, and no more time than
    their credential has.
    """
    if there is None:
        return None
    left_s = int((credential["expires_at"] - now).total_seconds())
    asked = Needs(max(spec.memory_mib for spec in wanted.jobs), max(spec.walltime_s for spec in wanted.jobs))
    return Needs(
        memory_mib=max(asked.memory_mib, there.memory_mib),
        walltime_s=max(asked.walltime_s, min(there.walltime_s, raised_s_within(left_s))),
    )


async def _resume(
    connection: Any, wanted: JobSubmission, content: bytes, credential: Any, actor: str, most: Needs | None
) -> SubmissionReply | None:
    task = await connection.fetchrow(sql.TASK_BY_KEY, _key_digest(wanted, actor))
    if task is None:
        return None
    if (task["content_digest"], task["owner_dn"]) != (content, credential["owner_dn"]):
        raise ConflictError("this key is known with other jobs or another DN: use another key")
    resumed = 0
    if task["owner_ti"] != owner_of(wanted.ti):
        await demand_here(connection, task)
        await usable.bind(connection, credential, task_id=task["task_id"], n_jobs=task["n_jobs"])
        new_ti = wanted.ti.model_dump()
        await connection.execute(
            sql.ADOPT_TASK,
            task["task_id"],
            new_ti,
            owner_of(wanted.ti),
            wanted.credential_id,
            actor,
            wanted.queue,
            wanted.generation if _is_of_another_run(task, wanted) else max(wanted.generation, task["generation"]),
        )
        reason = f"submitted again by try {wanted.ti.try_number}"
        resumed = await open_new_attempts(
            connection, task, wanted.credential_id, actor, reason, queue=str(wanted.queue)
        )
        await connection.execute(sql.USE_CREDENTIAL, *job_range(task), wanted.credential_id, wanted.queue)
        await follow_credential(connection, *job_range(task), credential, str(wanted.queue), most)
    return SubmissionReply(
        task_id=task["task_id"],
        first_panda_id=task["first_panda_id"],
        n_jobs=task["n_jobs"],
        created=False,
        resumed=resumed,
        queue=str(wanted.queue),
    )


async def _lanes(connection: Any, wanted: JobSubmission, credential: Any) -> list[int]:
    """The lane of each job."""
    shapes = shapes_of(wanted.jobs)
    dispatched_by = gathered(shapes)
    ids = await open_lanes(connection, credential, str(wanted.queue), set(dispatched_by.values()))
    lanes = {shape: ids[by] for shape, by in dispatched_by.items()}
    return [lanes[shape] for shape in shapes]


async def _insert_jobs(
    connection: Any,
    wanted: JobSubmission,
    specs: list[str],
    lanes: list[int],
    task_id: int,
    first: int,
    actor: str,
) -> None:
    await connection.copy_records_to_table(
        "panda_job_spec",
        columns=("panda_id", "job_name", "spec"),
        records=((first + n, job.job_name, spec) for n, (job, spec) in enumerate(zip(wanted.jobs, specs, strict=True))),
    )
    said = (task_id, wanted.credential_id, wanted.queue)
    await connection.copy_records_to_table(
        "panda_job",
        columns=_JOB_COLUMNS,
        records=(
            (
                panda_id,
                *said,
                lane,
                "activated",
                job.priority,
                job.max_attempt,
                job.cores,
                job.memory_mib,
                job.disk_mib,
                job.walltime_s,
                job.features,
                len({output.lfn for output in job.outputs}),
                actor,
            )
            for panda_id, job, lane in zip(itertools.count(first), wanted.jobs, lanes, strict=False)
        ),
    )


def _key_digest(wanted: JobSubmission, actor: str) -> bytes:
    """A key is known only to the client that used it, and for one owner: nobody takes or guesses another's."""
    return hashlib.sha256(f"{actor}\0{wanted.owner}\0{wanted.task_key}".encode()).digest()


def _content_digest(wanted: JobSubmission, specs: list[str]) -> bytes:
    """Of what a repeat must have in common with the first submission: not the credential, and not the queue."""
    whole = hashlib.sha256(f"{wanted.owner}\n".encode())
    if wanted.scripts:
        whole.update(json.dumps(wanted.scripts, sort_keys=True).encode())
    for spec in specs:
        whole.update(spec.encode() + b"\0")  # which no JSON holds
    return whole.digest()
