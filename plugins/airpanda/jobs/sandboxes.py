"""Input sandboxes: what a client uploads for the jobs of one owner, once, named by its SHA-256.

They are of their owner alone: nobody else's job can name them, and what one owner has tells another nothing. A panda
task whose jobs name one holds it until it is archived; what nobody holds is removed after a while (``retention``).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from airpanda.core.errors import ConflictError, NotFoundError, RequestError
from airpanda.db.pool import Database
from airpanda.db.sql import sandboxes as sql
from airpanda.jobs.content import Stored, receive
from airpanda.messages import JobSpec, SandboxView

SANDBOX = "panda:sandbox/"
"""How the source of an input begins that is one."""


@dataclass(frozen=True)
class Kept:
    """What an upload has come to. ``created`` is False when the content was there."""

    view: SandboxView
    created: bool


class Sandboxes:
    """Content below ``root`` (0700), which all gateways share; names in the database."""

    def __init__(self, database: Database, root: Path, *, max_bytes: int) -> None:
        self._database = database
        self._root = root
        self._max_bytes = max_bytes

    async def put(self, owner: str, sha256: str, content: AsyncIterator[bytes], *, actor: str) -> Kept:
        """Store it whole. A repeat changes nothing but how long it is kept.

        Raises:
            RequestError: too long, or the content has another checksum.
            ServiceError: the disk is full or fails.
        """
        blob = f"sandbox/{sha256[:2]}/{sha256[:16]}-{secrets.token_hex(16)}"
        path = self._root / blob
        try:
            size, adler32 = await receive(
                self._root, blob, content, sha256=sha256, max_bytes=self._max_bytes, option="max_sandbox_bytes"
            )
            row, superfluous = await self._publish(owner, sha256, size, adler32, blob, actor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if superfluous is not None:
            superfluous.unlink(missing_ok=True)
        return Kept(_view(row), created=superfluous != path)

    async def touch(self, owner: str, sha256: str) -> SandboxView:
        """Keep it as if it had just been uploaded.

        Raises:
            NotFoundError: it is not there and must be uploaded.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.TOUCH, owner, bytes.fromhex(sha256))
        if row is None or not self._path(row).is_file():
            raise _absent(owner, sha256)
        return _view(row)

    async def stored(self, owner: str, sha256: str) -> Stored:
        """For its owner's clients.

        Raises:
            NotFoundError: it is not there.
            ConflictError: it is on record, and its content is gone.
        """
        async with self._database.connection() as connection:
            return await self.find(connection, owner, sha256)

    async def find(self, connection: Any, owner: str, sha256: str) -> Stored:
        """The same within a transaction of the caller's."""
        row = await connection.fetchrow(sql.FIND, owner, bytes.fromhex(sha256))
        if row is None:
            raise _absent(owner, sha256)
        path = self._path(row)
        if not path.is_file():
            raise ConflictError(
                f"sandbox {sha256} of owner {owner!r} is on record, but its content is gone from the file store: upload"
                " it again"
            )
        return Stored(path=path, size=row["size"], sha256=sha256)

    async def _publish(
        self, owner: str, sha256: str, size: int, adler32: str, blob: str, actor: str
    ) -> tuple[Any, Path | None]:
        """Give the content its name; answer its row, and the file that nobody needs now."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(sql.PUT, owner, bytes.fromhex(sha256), size, adler32, blob, actor)
            if row["blob"] == blob:
                return row, None
            there = self._path(row)
            if not row["removing"] and there.is_file():
                return row, self._root / blob
            return await connection.fetchrow(sql.REPLACE, row["sandbox_id"], blob), there

    def _path(self, row: Any) -> Path:
        return self._root / str(row["blob"])


async def refer(connection: Any, jobs: Iterable[JobSpec], *, owner: str, task_id: int) -> None:
    """Have this panda task hold every sandbox that its jobs name.

    Raises:
        RequestError: one is not there for this owner; names it and the first job that wants it.
    """
    wanted: dict[bytes, str] = {}
    for job in jobs:
        for each in job.inputs:
            if each.source.startswith(SANDBOX):
                wanted.setdefault(bytes.fromhex(each.source.removeprefix(SANDBOX)), job.job_name)
    if not wanted:
        return
    held = {row["sha256"]: row["sandbox_id"] for row in await connection.fetch(sql.HOLD, owner, list(wanted))}
    for sha256, job_name in wanted.items():
        if sha256 not in held:
            raise RequestError(f"job {job_name}: {_absent(owner, sha256.hex())}")
    await connection.execute(sql.REFER, task_id, list(held.values()))


async def mark_unused(connection: Any, after: timedelta, limit: int) -> dict[int, str]:
    """Sandboxes that nobody holds and that were not used for so long: nobody gets at them any more. Id → blob."""
    unused = [row["sandbox_id"] for row in await connection.fetch(sql.UNUSED, after, limit)]
    marked = await connection.fetch(sql.MARK, after, unused) if unused else []
    return {row["sandbox_id"]: row["blob"] for row in marked}


def _view(row: Any) -> SandboxView:
    sha256 = row["sha256"].hex()
    return SandboxView(
        owner=row["owner"], sha256=sha256, size=row["size"], adler32=row["adler32"], source=f"{SANDBOX}{sha256}"
    )


def _absent(owner: str, sha256: str) -> NotFoundError:
    return NotFoundError(
        f"there is no sandbox {sha256} of owner {owner!r}: upload it (again) with PUT /v1/file/sandbox/{owner}/{sha256}"
    )
