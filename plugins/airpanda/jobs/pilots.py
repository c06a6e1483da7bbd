"""Pilots and the batches they are submitted in: intended first, recorded after, never forgotten."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from airpanda.core.clock import to_wire
from airpanda.core.errors import ConflictError, NotAuthorisedError, NotFoundError
from airpanda.db.pool import Database
from airpanda.db.sql import factory as factory_sql
from airpanda.db.sql import pilots as sql
from airpanda.messages import (
    BatchCancel,
    BatchIntent,
    BatchRecord,
    BatchView,
    PilotProbe,
    PilotsSeen,
    PilotView,
    WorkerReport,
)

SERVED = frozenset({"started"})
CE_FINAL = ("done", "failed", "timeout", "preempted", "cancelled", "lost")
SILENT_AFTER = timedelta(minutes=5)
"""A pilot that said nothing for so long no longer contradicts its computing element."""
MISSING_AFTER = timedelta(minutes=10)
"""A pilot that is silent, and that its computing element has not known for so long, is lost."""

Service = Literal["serve", "wait", "end"]
"""What a pilot that asks for work gets: jobs; none for now, as its node is bad; none any more."""

_PILOT_FIELDS = frozenset(PilotView.model_fields)
_OPEN = frozenset({"intended", "uncertain"})


@dataclass(frozen=True)
class Intent:
    """A batch on record, held by the caller if it is open. ``pilots`` is empty for one that is submitted."""

    batch_id: int
    tag: str
    queue: str
    ce: str
    state: Any
    fence: int
    pilots: list[int]


class PilotRegistry:
    """Writes and reads batches and pilots. ``queues`` and ``by`` (who intended) bound what a caller sees; None: all.

    Args:
        prefix: what the tags of this installation begin with; no other installation's do.
    """

    def __init__(
        self,
        database: Database,
        *,
        prefix: str = "ap-",
        silent: timedelta = SILENT_AFTER,
        missing: timedelta = MISSING_AFTER,
    ) -> None:
        self._database = database
        self._prefix = prefix
        self._silent, self._missing = silent, missing

    async def intend(self, intent: BatchIntent, *, actor: str) -> Intent:
        """Write n pilots before anything is submitted, or answer with those that the same key has already.

        Raises:
            ConflictError: a submission of this key is going on; says until when it may.
            NotFoundError: only what is known was wanted, and none of the key's pilots may live any more.
        """
        key = f"{actor}|{intent.queue}|{intent.key}" if intent.key else None
        while True:
            async with self._database.transaction() as connection:
                if intent.factory_fence and not await connection.fetchval(
                    factory_sql.HOLDS, intent.queue, intent.factory_fence
                ):
                    raise ConflictError(f"another factory has taken over the queue {intent.queue}: nothing is sent")
                known = await connection.fetchrow(sql.LOCK_INTENT, key) if key else None
                if known is not None:
                    if intent.ti is not None:
                        await connection.execute(sql.OWN, known["batch_id"], intent.ti.model_dump())
                    if known["state"] in _OPEN:
                        return await self._take(connection, known, intent.hold_s)
                    if known["state"] == "submitted" and not await connection.fetchval(sql.IS_OVER, known["batch_id"]):
                        return _intent(known, known["fence"], [])
                    await connection.execute(sql.FORGET_KEY, known["batch_id"])
                if intent.only_known:
                    raise NotFoundError("no batch of this key is open or has live pilots: nothing is sent")
                made = await self._insert(connection, intent, key, actor)
                if made is not None:
                    return made
            # Another call with this key was faster: what it wrote is there now.

    async def take(self, batch_id: int, hold_s: int, *, queues: Collection[str] | None, by: str | None) -> Intent:
        """Hold an open batch that nobody holds.

        Raises:
            NotFoundError: there is no such batch for this caller.
            ConflictError: somebody holds it, or it is open no more.
        """
        async with self._database.transaction() as connection:
            row = _mine(await connection.fetchrow(sql.LOCK_BATCH, batch_id), batch_id, queues, by)
            if row["state"] not in _OPEN:
                raise ConflictError(f"batch {batch_id} is {row['state']}: there is nothing left to submit")
            return await self._take(connection, row, hold_s)

    async def record(
        self, batch_id: int, record: BatchRecord, *, queues: Collection[str] | None, by: str | None
    ) -> BatchView:
        """Note what a submission returned. A repeat changes nothing.

        Raises:
            NotFoundError: there is no such batch for this caller.
            ConflictError: somebody else has taken it over.
        """
        async with self._database.transaction() as connection:
            row = _mine(await connection.fetchrow(sql.LOCK_BATCH, batch_id), batch_id, queues, by)
            if row["fence"] != record.fence:
                raise ConflictError(
                    f"batch {batch_id} was taken over by another submission (fence {row['fence']}, this is"
                    f" {record.fence}): what that one records counts"
                )
            await connection.execute(sql.LOCK_PILOTS, batch_id)
            ids, handles = list(record.handles), list(record.handles.values())
            await connection.execute(sql.RECORD_HANDLES, batch_id, record.ce, ids, handles)
            was_open = await connection.fetchval(sql.RECORD_BATCH, batch_id, record.state, record.ce, record.reason)
            if was_open and record.state != "uncertain":
                await connection.execute(sql.RECORD_FAILURE, batch_id, record.ce, record.reason, ids)
            return await self._view(connection, batch_id, queues, by)

    async def cancel(
        self, batch_id: int, wanted: BatchCancel, *, queues: Collection[str] | None, by: str | None
    ) -> BatchView:
        """Give a batch's pilots no more jobs; the answer's live pilots are to be ended at their element.

        It names none where another try of the task has adopted the batch. Raises as ``record``, but for conflicts.
        """
        async with self._database.transaction() as connection:
            row = _mine(await connection.fetchrow(sql.LOCK_BATCH, batch_id), batch_id, queues, by)
            if wanted.ti is not None and (row["ti"] or {}).get("ti_id") != wanted.ti.ti_id:
                view = await self._view(connection, batch_id, queues, by)
                return view.model_copy(update={"pilots": []})
            await connection.execute(sql.LOCK_PILOTS, batch_id)
            await connection.execute(sql.CANCEL, batch_id, wanted.reason)
            if row["state"] == "failed":
                await connection.execute(sql.CANCEL_INTENT, batch_id)
            return await self._view(connection, batch_id, queues, by)

    async def keep_log(
        self, batch_id: int, pilot_id: int, text: str, *, queues: Collection[str] | None, by: str | None
    ) -> None:
        """Keep the end of a pilot's log for people. Raises as ``batch``."""
        async with self._database.connection() as connection:
            _mine(await connection.fetchrow(sql.BATCH, batch_id), batch_id, queues, by)
            if await connection.fetchval(sql.KEEP_LOG, batch_id, pilot_id, text) is None:
                raise NotFoundError(f"batch {batch_id} has no pilot {pilot_id}")

    async def logs(self, batch_id: int, *, queues: Collection[str] | None, by: str | None) -> str:
        """What is kept of the logs of a batch's pilots, each below a line that names it. Raises as ``batch``."""
        async with self._database.connection() as connection:
            batch = _mine(await connection.fetchrow(sql.BATCH, batch_id), batch_id, queues, by)
            rows = await connection.fetch(sql.LOGS, batch_id)
        parts = [f"---- pilot {row['pilot_id']}: {row['state']} {row['reason']}\n{row['log_tail']}" for row in rows]
        head = f"batch {batch_id} of queue {batch['queue']}: {batch['state']} {batch['reason']}".rstrip()
        return "\n".join([head, *parts]) + "\n"

    async def known_tags(self, tags: Sequence[str]) -> list[str]:
        """Those of the tags that are on record."""
        async with self._database.connection() as connection:
            return [row["tag"] for row in await connection.fetch(sql.KNOWN_TAGS, list(tags))]

    async def observe(self, seen: PilotsSeen) -> int:
        """Note what a computing element says of a queue's pilots; answer how many were still live.

        Final or unknown at the element is over only for a pilot that is silent, too.
        """
        pilots = {each.pilot_id: each for each in seen.pilots}.values()
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                sql.OBSERVE,
                seen.queue,
                [each.pilot_id for each in pilots],
                list(CE_FINAL),
                self._silent,
                self._missing,
                [each.ce_state for each in pilots],
                [each.reason for each in pilots],
                [each.asked_to_end for each in pilots],
            )
        return len(rows)

    async def batch(self, batch_id: int, *, queues: Collection[str] | None, by: str | None) -> BatchView:
        """One batch with its pilots. Raises as ``record``."""
        async with self._database.connection() as connection:
            return await self._view(connection, batch_id, queues, by)

    async def probe(
        self, batch_id: int, pilot_id: int, *, queues: Collection[str] | None, by: str | None
    ) -> PilotProbe:
        """One pilot with its transcript. Raises as ``record``."""
        async with self._database.connection() as connection:
            _mine(await connection.fetchrow(sql.BATCH, batch_id), batch_id, queues, by)
            for row in await connection.fetch(sql.PILOTS, batch_id):
                if row["pilot_id"] == pilot_id:
                    return PilotProbe(**_fields(row), probe=row["probe"], log_tail=row["log_tail"])
        raise NotFoundError(f"batch {batch_id} has no pilot {pilot_id}")

    async def seen(self, pilot_id: int, queue: str, *, node: str, dn: str) -> Service:
        """Note that a pilot asks for work; answer whether it is to be served, to wait, or to end.

        Raises:
            NotAuthorisedError: this queue has no such pilot.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.SEEN, pilot_id, queue, node, dn)
        if row is None:
            raise NotAuthorisedError(f"queue {queue} has no pilot {pilot_id}")
        if row["state"] not in SERVED or row["only_probes"] or row["to_end"]:
            return "end"
        return "wait" if row["bad_node"] else "serve"

    async def report(self, pilot_id: int, queue: str, report: WorkerReport, *, dn: str) -> bool:
        """Note a pilot's start, benching or end; answer whether it may go on. A repeat changes nothing."""
        probe = report.probe or None
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                sql.REPORT, pilot_id, queue, report.node, report.status, report.pilot_uid, probe, report.reason, dn
            )
            if row is None and report.status == "finished":
                await connection.execute(sql.LAST_WORD, pilot_id, queue, probe)
        return row is not None and not row["only_probes"]

    async def _insert(self, connection: Any, intent: BatchIntent, key: str | None, actor: str) -> Intent | None:
        """None: another transaction has inserted this key since."""
        tag = f"{self._prefix}{secrets.token_hex(8)}"
        ti = intent.ti.model_dump() if intent.ti else None
        hold = timedelta(seconds=intent.hold_s)
        batch_id = await connection.fetchval(
            sql.INTEND, tag, intent.queue, ti, actor, key, intent.purpose, intent.ce, hold
        )
        if batch_id is None:
            return None
        rows = await connection.fetch(sql.INTEND_PILOTS, batch_id, intent.queue, intent.n_pilots, intent.ce)
        return Intent(batch_id, tag, intent.queue, intent.ce, "intended", 1, [row["pilot_id"] for row in rows])

    async def _take(self, connection: Any, row: Any, hold_s: int) -> Intent:
        if row["held"]:
            raise ConflictError(
                f"another submission of batch {row['batch_id']} is going on, or has broken off: it can be taken over at"
                f" {to_wire(row['held_until'])}"
            )
        fence = await connection.fetchval(sql.TAKE, row["batch_id"], timedelta(seconds=hold_s))
        ids = [each["pilot_id"] for each in await connection.fetch(sql.PILOT_IDS, row["batch_id"])]
        return _intent(row, fence, ids)

    async def _view(self, connection: Any, batch_id: int, queues: Collection[str] | None, by: str | None) -> BatchView:
        batch = _mine(await connection.fetchrow(sql.BATCH, batch_id), batch_id, queues, by)
        pilots = [PilotView(**_fields(row)) for row in await connection.fetch(sql.PILOTS, batch_id)]
        head = {key: batch[key] for key in ("tag", "queue", "state", "ce", "reason")}
        return BatchView(batch_id=batch_id, pilots=pilots, **head)


def _intent(row: Any, fence: int, pilots: list[int]) -> Intent:
    return Intent(row["batch_id"], row["tag"], row["queue"], row["ce"], row["state"], fence, pilots)


def _fields(row: Any) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in _PILOT_FIELDS}


def _mine(row: Any, batch_id: int, queues: Collection[str] | None, by: str | None) -> Any:
    """The batch's row, if this caller may see it.

    Raises:
        NotFoundError: there is none, or not for this caller.
    """
    others = row is not None and by is not None and row["intended_by"] != by
    if row is None or others or (queues is not None and row["queue"] not in queues):
        raise NotFoundError(f"there is no batch {batch_id} for this caller")
    return row
