"""Storage that does not grow for ever: what has ended goes into the archive, and after long from there.

Step by step, each of them one short transaction, so that a kill at any moment loses nothing and the next run goes on.
One process at a time; others find the lock taken and do nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airpanda.core.errors import ServiceError
from airpanda.db.pool import Database
from airpanda.db.sql import retention as sql
from airpanda.db.sql import sandboxes as sandboxes_sql
from airpanda.jobs.content import broken_off
from airpanda.jobs.sandboxes import mark_unused
from airpanda.jobs.store import job_range

BATCH = 500
AUDIT_BATCH = 5000
UPLOADS_AFTER = timedelta(days=1)
"""What nobody has written to for so long is no upload any more: a gateway ends what comes too slowly."""
_START = (datetime(1970, 1, 1, tzinfo=UTC), 0)


@dataclass(frozen=True)
class Keep:
    """For how long: ``archive_after`` and ``remove_after`` since the last change of a panda task; None: for ever.

    ``remove_after`` is for batches of pilots that are over, too; ``audit_after`` for the credential log;
    ``sandbox_after`` for sandboxes that no panda task holds, since their last use.
    """

    archive_after: timedelta | None
    remove_after: timedelta | None
    audit_after: timedelta | None
    sandbox_after: timedelta | None = None


@dataclass
class Done:
    """What was done, or would be."""

    tasks_archived: int = 0
    jobs_archived: int = 0
    tasks_removed: int = 0
    jobs_removed: int = 0
    batches_removed: int = 0
    audit_removed: int = 0
    sandboxes_removed: int = 0
    uploads_removed: int = 0

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __str__(self) -> str:
        return (
            f"{self.tasks_archived} panda tasks and {self.jobs_archived} jobs to the archive;"
            f" {self.tasks_removed} panda tasks, {self.jobs_removed} jobs, {self.batches_removed} batches of pilots,"
            f" {self.audit_removed} rows of the credential log, {self.sandboxes_removed} sandboxes and"
            f" {self.uploads_removed} uploads that broke off removed"
        )


class Retention:
    """Moves and removes. ``root`` is that of the file store, whose files go with their jobs."""

    def __init__(self, database: Database, root: Path, keep: Keep) -> None:
        self._database = database
        self._root = root
        self._keep = keep
        self._passed = _START
        self._stuck: list[int] = []

    async def step(self) -> Done:
        """The next batch of everything that is due. Falsy: nothing is left to do, or somebody else is at it."""
        done = Done()
        if self._keep.archive_after is not None:
            await self._archive(self._keep.archive_after, done)
        if self._keep.remove_after is not None:
            await self._remove(self._keep.remove_after, done)
            await self._remove_batches(self._keep.remove_after, done)
        if self._keep.audit_after is not None:
            await self._remove_audit(self._keep.audit_after, done)
        if self._keep.sandbox_after is not None:
            await self._remove_sandboxes(self._keep.sandbox_after, done)
        await self._remove_uploads(done)
        return done

    async def would(self) -> Done:
        """What is due, in whole; changes nothing."""
        done = Done(uploads_removed=len(await self._broken_off()))
        async with self._database.connection() as connection:
            if self._keep.archive_after is not None:
                row = await connection.fetchrow(sql.WOULD_ARCHIVE, self._keep.archive_after)
                done.tasks_archived, done.jobs_archived = row["tasks"], int(row["jobs"])
            if self._keep.remove_after is not None:
                row = await connection.fetchrow(sql.WOULD_REMOVE, self._keep.remove_after)
                done.tasks_removed, done.jobs_removed = row["tasks"], int(row["jobs"])
                done.batches_removed = await connection.fetchval(sql.WOULD_REMOVE_BATCHES, self._keep.remove_after)
            if self._keep.audit_after is not None:
                done.audit_removed = await connection.fetchval(sql.WOULD_REMOVE_AUDIT, self._keep.audit_after)
            if self._keep.sandbox_after is not None:
                done.sandboxes_removed = await connection.fetchval(sandboxes_sql.WOULD_REMOVE, self._keep.sandbox_after)
        return done

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Any]:
        """A transaction that no other process has at the same time; None: somebody has."""
        async with self._database.transaction() as connection:
            yield connection if await connection.fetchval(sql.LOCK) else None

    async def _archive(self, after: timedelta, done: Done) -> None:
        """Move some more jobs of a panda task that is begun, or begin with the next one that is due."""
        async with self._alone() as connection:
            task = None if connection is None else await self._next(connection, after)
            if task is None:
                return
            moved = await self._move(connection, task)
            done.jobs_archived += moved
            if await connection.fetchval(sql.DONE, task["task_id"], *job_range(task)) is not None:
                done.tasks_archived += 1
            elif not moved:
                self._stuck.append(task["task_id"])
                raise ServiceError(
                    f"panda task {task['task_id']} was begun to be archived and has jobs that are not final: its rows"
                    " were changed by hand; set its archived_at and ended_at to NULL",
                    transient=False,
                )

    async def _next(self, connection: Any, after: timedelta) -> Any:
        """A panda task that is begun; None: there is nothing to do."""
        task = await connection.fetchrow(sql.BEGUN, self._stuck)
        while task is None:
            quiet = await connection.fetchrow(sql.QUIET, after, *self._passed)
            self._passed = _START if quiet is None else (quiet["created_at"], quiet["task_id"])
            if quiet is None:
                return None
            if await connection.fetchval(sql.BEGIN, after, quiet["task_id"]) is not None:
                task = quiet  # else somebody has just opened it again
        return task

    async def _move(self, connection: Any, task: Any) -> int:
        panda_ids = [row["panda_id"] for row in await connection.fetch(sql.ARCHIVE, *job_range(task), BATCH)]
        for statement in sql.LEAVE:
            await connection.execute(statement, panda_ids)
        return len(panda_ids)

    async def _remove(self, after: timedelta, done: Done) -> None:
        """Files before their names: after a kill in between they are named still, and removed by the next run.

        No transaction is open meanwhile: a slow file system holds no row, and nobody else up.
        """
        async with self._alone() as connection:
            due = None if connection is None else await _oldest(connection, after)
            if due is None:
                return
            blobs = [self._root / row["blob"] for row in await connection.fetch(sql.BLOBS, due.panda_ids)]
        await asyncio.to_thread(_unlink, blobs)  # the loop serves pilots
        async with self._alone() as connection:
            if connection is None or await _oldest(connection, after) != due:
                return  # another process was as far
            await _forget(connection, due, done)

    async def _remove_batches(self, after: timedelta, done: Done) -> None:
        async with self._alone() as connection:
            rows = [] if connection is None else await connection.fetch(sql.OLD_BATCHES, after, BATCH)
            batch_ids = [row["batch_id"] for row in rows]
            for statement in sql.REMOVE_BATCHES if batch_ids else ():
                await connection.execute(statement, batch_ids)
            done.batches_removed += len(batch_ids)

    async def _remove_audit(self, after: timedelta, done: Done) -> None:
        async with self._alone() as connection:
            if connection is not None:
                text = await connection.execute(sql.REMOVE_AUDIT, after, AUDIT_BATCH)
                done.audit_removed += int(text.split()[-1])

    async def _remove_sandboxes(self, after: timedelta, done: Done) -> None:
        """Marked, then unlinked, then forgotten: after a kill in between the next run finds the mark."""
        async with self._alone() as connection:
            marked = {} if connection is None else await mark_unused(connection, after, BATCH)
        if not marked:
            return
        await asyncio.to_thread(_unlink, [self._root / blob for blob in marked.values()])
        async with self._database.connection() as connection:
            done.sandboxes_removed += await connection.fetchval(sandboxes_sql.REMOVE, list(marked))

    async def _remove_uploads(self, done: Done) -> None:
        if paths := await self._broken_off():
            await asyncio.to_thread(_unlink, paths)
            done.uploads_removed += len(paths)

    async def _broken_off(self) -> list[Path]:
        return await asyncio.to_thread(lambda: list(broken_off(self._root, UPLOADS_AFTER)))


@dataclass(frozen=True)
class _Due:
    """Jobs of the oldest panda task that are to go next; fewer than a batch: the panda task goes with them."""

    task_id: int
    panda_ids: list[int]


async def _oldest(connection: Any, after: timedelta) -> _Due | None:
    task = await connection.fetchrow(sql.OLD, after)
    if task is None:
        return None
    rows = await connection.fetch(sql.ARCHIVED_IDS, *job_range(task), BATCH)
    return _Due(task["task_id"], [row["panda_id"] for row in rows])


async def _forget(connection: Any, due: _Due, done: Done) -> None:
    for statement in sql.REMOVE:
        await connection.execute(statement, due.panda_ids)
    if due.panda_ids:
        await _note(connection, "job", due.panda_ids[0], due.panda_ids[-1])
    done.jobs_removed += len(due.panda_ids)
    if len(due.panda_ids) < BATCH:
        for statement in sql.REMOVE_TASK:
            await connection.execute(statement, due.task_id)
        await _note(connection, "task", due.task_id, due.task_id)
        done.tasks_removed += 1


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


async def _note(connection: Any, kind: str, first: int, last: int) -> None:
    if await connection.fetchval(sql.EXTEND, kind, first, last) is None:
        await connection.execute(sql.NOTE_REMOVED, kind, first, last)
