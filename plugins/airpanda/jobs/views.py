"""What people and operators look at: jobs with all their attempts, progress of panda tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from airpanda.core.errors import NotFoundError
from airpanda.db.pool import Database
from airpanda.db.sql import jobs as jobs_sql
from airpanda.db.sql import views as sql
from airpanda.jobs.store import job_range, progress_of
from airpanda.messages import AttemptView, FileView, JobView, TaskProgress

_ATTEMPT_FIELDS = frozenset(AttemptView.model_fields)


@dataclass(frozen=True)
class LastLog:
    """The payload's log of the latest attempt: a stored file's ``blob``, or the ``tail`` its heartbeats carried."""

    blob: str | None
    tail: str


class JobReader:
    """Reads only. ``owners`` bounds what a caller sees; None is everything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def job(self, panda_id: int, *, owners: Collection[str] | None) -> JobView:
        """One job.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.connection() as connection:
            views = await _views(connection, panda_id, panda_id)
        if not views or (owners is not None and views[0].owner not in owners):
            raise _no_job(panda_id)
        return views[0]

    async def jobs(self, task_id: int, *, owners: Collection[str] | None, limit: int, offset: int) -> list[JobView]:
        """Jobs of a panda task in the order of submission.

        Raises:
            NotFoundError: there is no such panda task, or not for this caller.
        """
        async with self._database.connection() as connection:
            first, last = job_range(await self._task(connection, task_id, owners))
            return await _views(connection, first + offset, min(first + offset + limit - 1, last))

    async def progress(self, task_id: int, *, owners: Collection[str] | None) -> TaskProgress:
        """Jobs by state. Raises as ``jobs``."""
        async with self._database.connection() as connection:
            return await progress_of(connection, await self._task(connection, task_id, owners))

    async def demand_task(self, task_id: int, *, owners: Collection[str] | None) -> None:
        """Raises as ``jobs``."""
        async with self._database.connection() as connection:
            await self._task(connection, task_id, owners)

    async def last_log(self, panda_id: int, *, owners: Collection[str] | None) -> LastLog:
        """Where the payload's log of the latest attempt is.

        Raises:
            NotFoundError: no such job for this caller, or no attempt yet.
        """
        async with self._database.connection() as connection:
            job = await connection.fetchrow(sql.JOB_OWNER, panda_id)
            if job is None or (owners is not None and job["owner"] not in owners):
                raise _no_job(panda_id)
            row = await connection.fetchrow(sql.LAST_LOG, panda_id)
        if row is None:
            raise NotFoundError(f"job {panda_id} has no log yet: no pilot has taken it")
        return LastLog(blob=row["blob"], tail=row["log_tail"])

    async def _task(self, connection: Any, task_id: int, owners: Collection[str] | None) -> Any:
        task = await connection.fetchrow(jobs_sql.TASK_BY_ID, task_id)
        if task is None or (owners is not None and task["owner"] not in owners):
            raise NotFoundError(f"there is no panda task {task_id} for this caller")
        return task


async def _views(connection: Any, first: int, last: int) -> list[JobView]:
    attempts: dict[int, list[AttemptView]] = defaultdict(list)
    for row in await connection.fetch(sql.ATTEMPTS, first, last):
        fields = {key: value for key, value in row.items() if key in _ATTEMPT_FIELDS}
        attempts[row["panda_id"]].append(AttemptView(**fields))
    outputs: dict[int, list[FileView]] = defaultdict(list)
    for row in await connection.fetch(sql.OUTPUTS, first, last):
        outputs[row["panda_id"]].append(file_view(row))
    return [
        JobView(**dict(row), attempts=attempts[row["panda_id"]], outputs=outputs[row["panda_id"]])
        for row in await connection.fetch(sql.JOBS, first, last)
    ]


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
