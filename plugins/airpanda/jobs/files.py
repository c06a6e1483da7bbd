"""Outputs and logs: bytes in a directory, their names and rights in the database.

A file is visible only whole: its content lies under a fresh name, is checked and synced, and then one transaction
gives it its name. Whatever an interrupted upload leaves has no name and is removed, by ``retention`` where the gateway
was killed.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from airpanda.core.errors import (
    ConflictError,
    GoneError,
    NotAuthorisedError,
    NotFoundError,
    StaleReportError,
)
from airpanda.core.identity import Fqan
from airpanda.db.pool import Database
from airpanda.db.sql import files as sql
from airpanda.db.sql import views as views_sql
from airpanda.jobs.content import Stored, receive
from airpanda.jobs.removed import not_found
from airpanda.jobs.reports import Lease
from airpanda.jobs.sandboxes import SANDBOX, Sandboxes
from airpanda.messages import LOGS, PILOT_LOG, FileView, InputFile, JobSpec


class FileStore:
    """Files of jobs below ``root`` (0700), which all gateways share."""

    def __init__(self, database: Database, root: Path, sandboxes: Sandboxes, *, max_bytes: int) -> None:
        self._database = database
        self._root = root
        self._sandboxes = sandboxes
        self._max_bytes = max_bytes

    async def put(self, lease: Lease, lfn: str, content: AsyncIterator[bytes], *, sha256: str) -> FileView:
        """Store one declared output or a log of a leased attempt. A repeat replaces what was there.

        Raises:
            ServiceError: the disk is full or fails.
            StaleReportError: the lease is not, or no longer, the caller's.
            NotFoundError: the job declares no such output.
            RequestError: too long, or the content has another checksum than announced.
        """
        access = await self._access(lease, lfn)
        blob = f"{lease.panda_id % 1000:03d}/{lease.panda_id}-{secrets.token_hex(16)}"
        try:
            size, adler32 = await receive(
                self._root, blob, content, sha256=sha256, max_bytes=self._max_bytes, option="max_upload_bytes"
            )
            old = await self._publish(lease, lfn, access, blob, size, bytes.fromhex(sha256), adler32)
        except BaseException:
            self.blob(blob).unlink(missing_ok=True)
            raise
        if old is not None:
            self.blob(old).unlink(missing_ok=True)
        source = f"panda:{lease.panda_id}/{lfn}"
        return FileView(lfn=lfn, source=source, size=size, sha256=sha256, access=access, adler32=adler32)

    async def input_for(self, lease: Lease, lfn: str) -> Stored:
        """A declared input of a leased job, if the job's owner may read it.

        Raises:
            StaleReportError: the lease is not, or no longer, the caller's.
            NotFoundError: the job declares no such input, or the file does not exist (yet).
            NotAuthorisedError: the file is another owner's and not shared with this one's VO.
            ConflictError: it is on record, and its content is gone.
        """
        async with self._database.connection() as connection:
            reader = await self._leased(connection, lease)
            spec = JobSpec.model_validate_json(reader["spec"])
            source = _stored_source(lease, lfn, spec.inputs)
            if source.startswith(SANDBOX):
                return await self._sandboxes.find(connection, reader["owner"], source.removeprefix(SANDBOX))
            panda_id, _, name = source.removeprefix("panda:").partition("/")
            row = await connection.fetchrow(sql.OUTPUT, int(panda_id), name)
            gone = None if row else await not_found(connection, "job", int(panda_id))
        if isinstance(gone, GoneError):
            raise gone
        if row is None:
            raise NotFoundError(f"{source} does not exist: job {panda_id} has not finished with such an output")
        if not may_read(row, owner_dn=reader["owner_dn"], fqans=reader["fqans"]):
            raise NotAuthorisedError(f"{source} belongs to another owner and is not shared with {reader['owner_dn']}")
        return self._stored(row)

    async def output(self, panda_id: int, lfn: str, *, owners: frozenset[str] | None) -> Stored:
        """An output of the latest finished attempt.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.OUTPUT, panda_id, lfn)
            gone = None if row else await not_found(connection, "job", panda_id)
        if isinstance(gone, GoneError):
            raise gone
        if row is None or (owners is not None and row["owner"] not in owners):
            raise NotFoundError(f"there is no finished output {lfn!r} of job {panda_id} for this caller")
        return self._stored(row)

    async def pilot_log(self, panda_id: int, *, owners: frozenset[str] | None) -> Stored:
        """The pilot's own log of the latest attempt, a compressed tar.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.connection() as connection:
            job = await connection.fetchrow(views_sql.JOB_OWNER, panda_id)
            row = await connection.fetchrow(views_sql.LAST_PILOT_LOG, panda_id)
            gone = None if job else await not_found(connection, "job", panda_id)
        if isinstance(gone, GoneError):
            raise gone
        if job is None or row is None or row["blob"] is None or (owners is not None and job["owner"] not in owners):
            raise NotFoundError(f"there is no {PILOT_LOG} of job {panda_id}'s latest attempt for this caller")
        return self._stored(row)

    def blob(self, name: str) -> Path:
        """Where a blob lies."""
        return self._root / name

    async def _access(self, lease: Lease, lfn: str) -> Literal["owner", "vo"]:
        async with self._database.connection() as connection:
            row = await self._leased(connection, lease)
        if lfn in LOGS:
            return "owner"
        for output in JobSpec.model_validate_json(row["spec"]).outputs:
            if output.lfn == lfn and output.destination is None:
                return output.access
        raise NotFoundError(f"job {lease.panda_id} declares no output {lfn!r} that is to be stored here")

    async def _leased(self, connection: Any, lease: Lease) -> Any:
        row = await connection.fetchrow(sql.LEASE, *lease.key)
        if row is None:
            raise _stale(lease)
        return row

    async def _publish(
        self, lease: Lease, lfn: str, access: str, blob: str, size: int, sha256: bytes, adler32: str
    ) -> str | None:
        """Give the content its name; answer the blob it replaces."""
        async with self._database.transaction() as connection:
            if await connection.fetchval(sql.STILL_LEASED, *lease.key) is None:
                raise _stale(lease)
            key = (lease.panda_id, lease.attempt_nr, lfn)
            old: str | None = await connection.fetchval(sql.REPLACED_BLOB, *key)
            await connection.execute(sql.PUT, *key, size, sha256, adler32, access, blob)
        return old

    def _stored(self, row: Any) -> Stored:
        if row["blob"] is None:
            raise ConflictError(f"{row['lfn']} of job {row['panda_id']} is not stored here, it lies at {row['url']}")
        path = self.blob(row["blob"])
        if not path.is_file():
            raise content_gone(row["panda_id"], row["lfn"])
        return Stored(path=path, size=row["size"], sha256=row["sha256"].hex())


def content_gone(panda_id: int, lfn: str) -> ConflictError:
    """What is said of a file that is on record and has no content."""
    return ConflictError(f"panda:{panda_id}/{lfn} is on record, but its content is gone from the file store")


def _stored_source(lease: Lease, lfn: str, inputs: list[InputFile]) -> str:
    source = next((item.source for item in inputs if item.lfn == lfn), "")
    if not source.startswith("panda:"):
        raise NotFoundError(f"job {lease.panda_id} declares no input {lfn!r} that is stored here")
    return source


def may_read(row: Any, *, owner_dn: str, fqans: list[str]) -> bool:
    """Its owner; and for files shared with the VO, whoever has an attribute of a VO the owner was in."""
    if row["owner_dn"] == owner_dn:
        return True
    vos = {Fqan.parse(text).vo for text in fqans}
    return row["access"] == "vo" and not vos.isdisjoint(Fqan.parse(text).vo for text in row["fqans"])


def _stale(lease: Lease) -> StaleReportError:
    return StaleReportError(
        f"attempt {lease.attempt_nr} of job {lease.panda_id} is not, or no longer, yours: stop the payload"
    )
