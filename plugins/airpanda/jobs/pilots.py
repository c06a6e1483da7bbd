"""Pilots and the batches they are submitted in: intended first, recorded after, never forgotten."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from airpanda.core.errors import NotAuthorisedError, NotFoundError
from airpanda.db.pool import Database
from airpanda.db.sql import pilots as sql
from airpanda.messages import BatchIntent, BatchRecord, BatchView, PilotView, WorkerReport

_PILOT_FIELDS = frozenset(PilotView.model_fields)
SERVED = frozenset({"started"})


class PilotRegistry:
    """Writes and reads batches and pilots. ``queues`` and ``by`` (who intended) bound what a caller sees; None: all."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def intend(self, intent: BatchIntent, *, actor: str) -> tuple[int, str, list[int]]:
        """Write n pilots before anything is submitted; answer batch, its unique tag, and the PilotIDs."""
        tag = f"ap-{secrets.token_hex(8)}"
        async with self._database.transaction() as connection:
            ti = intent.ti.model_dump() if intent.ti else None
            batch_id = await connection.fetchval(sql.INTEND, tag, intent.queue, ti, actor)
            rows = await connection.fetch(sql.INTEND_PILOTS, batch_id, intent.queue, intent.n_pilots)
        return batch_id, tag, [row["pilot_id"] for row in rows]

    async def record(
        self, batch_id: int, record: BatchRecord, *, queues: Collection[str] | None, by: str | None
    ) -> BatchView:
        """Note what a submission returned. A repeat changes nothing.

        Raises:
            NotFoundError: there is no such batch for this caller.
        """
        async with self._database.transaction() as connection:
            await self._batch(connection, batch_id, queues, by)
            await connection.execute(sql.RECORD_BATCH, batch_id, record.state, record.ce, record.reason)
            ids, handles = list(record.handles), list(record.handles.values())
            await connection.execute(sql.RECORD_HANDLES, batch_id, record.ce, ids, handles)
            if record.state != "uncertain":
                await connection.execute(sql.RECORD_FAILURE, batch_id, record.ce, record.reason, ids)
            return await self._view(connection, batch_id, queues, by)

    async def batch(self, batch_id: int, *, queues: Collection[str] | None, by: str | None) -> BatchView:
        """One batch with its pilots. Raises as ``record``."""
        async with self._database.connection() as connection:
            return await self._view(connection, batch_id, queues, by)

    async def seen(self, pilot_id: int, queue: str, *, node: str, dn: str) -> bool:
        """Note that a pilot asks for work; answer whether it is to be served.

        Raises:
            NotAuthorisedError: this queue has no such pilot.
        """
        async with self._database.connection() as connection:
            state = await connection.fetchval(sql.SEEN, pilot_id, queue, node, dn)
        if state is None:
            raise NotAuthorisedError(f"queue {queue} has no pilot {pilot_id}")
        return state in SERVED

    async def report(self, pilot_id: int, queue: str, report: WorkerReport, *, dn: str) -> bool:
        """Note a pilot's start, benching or end; answer whether its state allows that. A repeat changes nothing."""
        async with self._database.connection() as connection:
            state = await connection.fetchval(
                sql.REPORT,
                pilot_id,
                queue,
                report.node,
                report.status,
                report.pilot_uid,
                report.probe or None,
                report.reason,
                dn,
            )
        return state is not None

    async def _batch(self, connection: Any, batch_id: int, queues: Collection[str] | None, by: str | None) -> Any:
        row = await connection.fetchrow(sql.BATCH, batch_id)
        others = row is not None and by is not None and row["intended_by"] != by
        if row is None or others or (queues is not None and row["queue"] not in queues):
            raise NotFoundError(f"there is no batch {batch_id} for this caller")
        return row

    async def _view(self, connection: Any, batch_id: int, queues: Collection[str] | None, by: str | None) -> BatchView:
        batch = await self._batch(connection, batch_id, queues, by)
        pilots = [
            PilotView(**{key: value for key, value in row.items() if key in _PILOT_FIELDS})
            for row in await connection.fetch(sql.PILOTS, batch_id)
        ]
        return BatchView(batch_id=batch_id, tag=batch["tag"], queue=batch["queue"], state=batch["state"], pilots=pilots)
