"""One job by its PandaID: stop it, try it again. Every public method is one transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from airpanda.core.errors import ArchivedError, ConflictError
from airpanda.db.pool import Database
from airpanda.db.sql import jobs as sql
from airpanda.db.sql import views as views_sql
from airpanda.jobs.board import Boards
from airpanda.jobs.removed import not_found
from airpanda.jobs.store import job_range, try_again
from airpanda.messages import JobStatus, JobStatusView


class SingleJobs:
    """Changes one job as the store changes all of a panda task. ``owners`` bounds what a caller may touch."""

    def __init__(self, database: Database, boards: Boards) -> None:
        self._database = database
        self._boards = boards

    async def kill(self, panda_id: int, reason: str, *, owners: Collection[str] | None, actor: str) -> JobStatusView:
        """Cancel a waiting job at once; have the pilot of a running one stop it. A final job stays as it is.

        Raises:
            NotFoundError: there is no such job for this caller.
        """
        async with self._database.transaction() as connection:
            await _demand(connection, panda_id, owners)
            await connection.execute(sql.KILL, panda_id, panda_id, actor, reason[:1000])
            return await _status(connection, panda_id)

    async def retry(self, panda_id: int, *, owners: Collection[str] | None, actor: str) -> JobStatusView:
        """A new attempt, with a fresh budget, for a job that failed, was cancelled, closed, or told to stop.

        A job that waits already is left as it is, so that a repeat changes nothing. After the end of the Airflow task
        its jobs are not that task's any more, as with ``JobStore.retry``.

        Raises:
            NotFoundError: there is no such job for this caller.
            ArchivedError: it is in the archive, or on its way there.
            ConflictError: the job has finished, or is with a pilot.
        """
        async with self._database.transaction() as connection:
            await _demand(connection, panda_id, owners)
            # Task before job, as everybody locks them who needs both.
            task = await connection.fetchrow(views_sql.LOCK_TASK_OF_JOB, panda_id)
            job = await connection.fetchrow(sql.LOCK_JOB, panda_id)
            if job is None or task["archived_at"] is not None:  # or on its way there
                raise ArchivedError(f"job {panda_id} is in the archive: it can be looked at and is not tried again")
            await connection.execute(sql.DETACH_TASK, task["task_id"], *job_range(task))
            alone = {"first_panda_id": panda_id, "n_jobs": 1}
            done = await try_again(connection, alone, task["credential_id"], actor)
            if not done and job["status"] != JobStatus.ACTIVATED:
                says = "only what failed or was stopped is tried again"
                raise ConflictError(f"job {panda_id} is {job['status']}: {says}")
            status = await _status(connection, panda_id)
        self._boards.changed()
        return status


async def _demand(connection: Any, panda_id: int, owners: Collection[str] | None) -> None:
    if not await connection.fetch(views_sql.STATUSES, [panda_id], None if owners is None else list(owners)):
        raise await not_found(connection, "job", panda_id)


async def _status(connection: Any, panda_id: int) -> JobStatusView:
    (row,) = await connection.fetch(views_sql.STATUSES, [panda_id], None)
    return JobStatusView(**dict(row))
