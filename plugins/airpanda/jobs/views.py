"""What people and operators look at: jobs with all their attempts, progress of panda tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from airpanda.core.errors import NotFoundError
from airpanda.db.pool import Database
from airpanda.db.sql import jobs as jobs_sql
from airpanda.db.sql import views as sql
from airpanda.jobs.progress import counts_of, n_final, progress, progress_of, suspected_of
from airpanda.jobs.removed import not_found
from airpanda.jobs.silence import Silence
from airpanda.jobs.store import job_range
from airpanda.messages import (
    AttemptView,
    FileView,
    JobPage,
    JobStatus,
    JobStatusView,
    JobSummary,
    JobView,
    TaskPage,
    TaskProgress,
    TaskView,
)

PAGE_LOOKS_AT = 20_000
_ATTEMPT_FIELDS = frozenset(AttemptView.model_fields)
_TASK_FIELDS = frozenset(TaskView.model_fields)


@dataclass(frozen=True)
class LastLog:
    """The payload's log of the latest attempt: a stored file's ``blob``, or the ``tail`` its heartbeats carried."""

    blob: str | None
    tail: str


class JobReader:
    """Reads only. ``owners`` bounds what a caller sees; None is everything. ``silence``: who is suspected."""

    def __init__(self, database: Database, silence: Silence) -> None:
        self._database = database
        self._silence = silence

    async def job(self, panda_id: int, *, owners: Collection[str] | None) -> JobView:
        """One job.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.connection() as connection:
            views = await self._views(connection, [panda_id])
            if not views:
                raise await not_found(connection, "job", panda_id)
        if owners is not None and views[0].owner not in owners:
            raise _no_job(panda_id)
        return views[0]

    async def jobs(
        self,
        task_id: int,
        *,
        owners: Collection[str] | None,
        limit: int,
        offset: int,
        statuses: Collection[JobStatus] | None = None,
    ) -> list[JobView]:
        """Jobs of a panda task in the order of submission, all or those of these states.

        Raises:
            NotFoundError: there is no such panda task, or not for this caller.
        """
        async with self._database.connection() as connection:
            first, last = job_range(await self._task(connection, task_id, owners))
            rows = await connection.fetch(sql.JOBS_OF_TASK, first, last, _listed(statuses), limit, offset)
            return await self._views(connection, [row["panda_id"] for row in rows])

    async def progress(self, task_id: int, *, owners: Collection[str] | None) -> TaskProgress:
        """Jobs by state. Raises as ``jobs``."""
        async with self._database.connection() as connection:
            task = await self._task(connection, task_id, owners)
            return await progress_of(connection, task, self._silence.margin)

    async def progress_of(self, task_ids: Collection[int], *, owners: Collection[str] | None) -> list[TaskProgress]:
        """The same of several, the states in one snapshot; those that do not exist for this caller are left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.TASKS_OF, list(task_ids), _listed(owners))
            known = [row["task_id"] for row in rows]
            counts = await counts_of(connection, known)
            suspected = await suspected_of(connection, known, self._silence.margin)
        return [
            progress(row["task_id"], row["n_jobs"], counts[row["task_id"]], suspected.get(row["task_id"], 0))
            for row in rows
        ]

    async def demand_task(self, task_id: int, *, owners: Collection[str] | None) -> None:
        """Raises as ``jobs``."""
        async with self._database.connection() as connection:
            await self._task(connection, task_id, owners)

    async def task(self, task_id: int, *, owners: Collection[str] | None) -> TaskView:
        """One panda task. Raises as ``jobs``."""
        async with self._database.connection() as connection:
            (view,) = await self._task_views(connection, [await self._task(connection, task_id, owners)])
        return view

    async def task_page(
        self,
        *,
        owners: Collection[str] | None,
        queue: str | None,
        before: int,
        limit: int,
        submitted_by: str | None = None,
        only_open: bool = False,
    ) -> TaskPage:
        """Panda tasks with numbers below ``before``, the newest first; looks at ``limit`` of them."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.TASKS, before, _listed(owners), queue, limit, submitted_by, only_open)
            tasks = await self._task_views(connection, rows)
        wanted = [task for task in tasks if not (only_open and task.done)]
        return TaskPage(tasks=wanted, before=tasks[-1].task_id if len(tasks) == limit else None)

    async def job_page(
        self,
        *,
        owners: Collection[str] | None,
        statuses: Collection[JobStatus] | None,
        queue: str | None,
        before: int,
        limit: int,
    ) -> JobPage:
        """Jobs with PandaIDs below ``before``, the newest first; looks at ``PAGE_LOOKS_AT`` of them at most."""
        async with self._database.connection() as connection, connection.transaction(isolation="repeatable_read"):
            wanted = (_listed(owners), _listed(statuses), queue, limit)
            rows = await connection.fetch(sql.PAGE, before, PAGE_LOOKS_AT, *wanted)
            jobs = [JobSummary(**self._with_silence(row)) for row in rows]
            end = await connection.fetchrow(sql.PAGE_END, before, PAGE_LOOKS_AT)
        if len(jobs) == limit:
            return JobPage(jobs=jobs, before=jobs[-1].panda_id)
        return JobPage(jobs=jobs, before=end["last"] if end["n"] == PAGE_LOOKS_AT else None)

    async def statuses(self, panda_ids: Collection[int], *, owners: Collection[str] | None) -> list[JobStatusView]:
        """Where these jobs are; those that do not exist for this caller are left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.STATUSES, list(panda_ids), _listed(owners))
        return [JobStatusView(**dict(row)) for row in rows]

    async def statuses_for_pilot(self, panda_ids: Collection[int], *, pilot_id: int) -> list[JobStatusView]:
        """Where jobs are that this pilot has or had; others are left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.PILOTS_STATUSES, list(panda_ids), pilot_id)
        return [JobStatusView(**dict(row)) for row in rows]

    async def last_log(self, panda_id: int, *, owners: Collection[str] | None) -> LastLog:
        """Where the payload's log of the latest attempt is.

        Raises:
            NotFoundError: no such job for this caller, or no attempt yet.
        """
        async with self._database.connection() as connection:
            job = await connection.fetchrow(sql.JOB_OWNER, panda_id)
            if job is None:
                raise await not_found(connection, "job", panda_id)
            if owners is not None and job["owner"] not in owners:
                raise _no_job(panda_id)
            row = await connection.fetchrow(sql.LAST_LOG, panda_id)
        if row is None:
            raise NotFoundError(f"job {panda_id} has no log yet: no pilot has taken it")
        return LastLog(blob=row["blob"], tail=row["log_tail"])

    async def _task_views(self, connection: Any, tasks: Sequence[Any]) -> list[TaskView]:
        known = [task["task_id"] for task in tasks]
        counts = await counts_of(connection, known)
        suspected = await suspected_of(connection, known, self._silence.margin)
        return [_task_view(task, counts[task["task_id"]], suspected.get(task["task_id"], 0)) for task in tasks]

    async def _views(self, connection: Any, panda_ids: list[int]) -> list[JobView]:
        attempts: dict[int, list[AttemptView]] = defaultdict(list)
        for row in await connection.fetch(sql.ATTEMPTS, panda_ids):
            fields = {key: value for key, value in row.items() if key in _ATTEMPT_FIELDS}
            attempts[row["panda_id"]].append(AttemptView(**fields))
        outputs: dict[int, list[FileView]] = defaultdict(list)
        for row in await connection.fetch(sql.OUTPUTS, panda_ids):
            outputs[row["panda_id"]].append(file_view(row))
        logs: dict[int, list[FileView]] = defaultdict(list)
        for row in await connection.fetch(sql.LOGS, panda_ids):
            logs[row["panda_id"]].append(file_view(row))
        return [
            JobView(
                **self._with_silence(row),
                attempts=attempts[row["panda_id"]],
                outputs=outputs[row["panda_id"]],
                logs=logs[row["panda_id"]],
            )
            for row in await connection.fetch(sql.JOBS, panda_ids)
        ]

    def _with_silence(self, row: Any) -> dict[str, Any]:
        """A job's row, in which stands for how long its pilot is silent instead of what is left of the lease."""
        fields = dict(row)
        left_s = fields.pop("left_s")
        return fields | {"silent_s": self._silence.of(left_s)}

    async def _task(self, connection: Any, task_id: int, owners: Collection[str] | None) -> Any:
        task = await connection.fetchrow(jobs_sql.TASK_BY_ID, task_id)
        if task is None:
            raise await not_found(connection, "task", task_id)
        if owners is not None and task["owner"] not in owners:
            raise NotFoundError(f"there is no panda task {task_id} for this caller")
        return task


def _listed(names: Collection[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _task_view(task: Any, counts: dict[JobStatus, int], suspected: int) -> TaskView:
    fields = {key: value for key, value in task.items() if key in _TASK_FIELDS}
    return TaskView(**fields, counts=counts, done=n_final(counts) == task["n_jobs"], suspected=suspected)


def file_view(row: Any) -> FileView:
    """A stored file as callers see it."""
    return FileView(
        lfn=row["lfn"],
        source=row["url"] or f"panda:{row['panda_id']}/{row['lfn']}",
        size=row["size"],
        sha256=row["sha256"].hex(),
        access=row["access"],
        adler32=row["adler32"],
        url=row["url"],
    )


def _no_job(panda_id: int) -> NotFoundError:
    return NotFoundError(f"there is no job {panda_id} for this caller")
