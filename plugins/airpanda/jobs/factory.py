"""What the pilot factory needs of the store: one holder for each queue, its view, and its memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airpanda.core.clock import to_wire
from airpanda.core.errors import ConflictError
from airpanda.db.pool import Database
from airpanda.db.sql import factory as sql
from airpanda.messages import Demand, FactoryEnd, NodeBench, OpenBatch, RecentBatch, RecentNode


@dataclass(frozen=True)
class SlotNeeds:
    """What one pilot of the queue offers; jobs that need more are no demand."""

    cores: int
    memory_mib: int
    disk_mib: int
    walltime_s: int
    features: Sequence[str] = ()


class FactoryRegistry:
    """Reads what factories decide from, and keeps what they remember."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, queue: str, holder: str, hold_s: int) -> tuple[int, dict[str, Any]]:
        """Be the queue's one factory; answer the fence and the memory.

        Raises:
            ConflictError: another one is at it; says until when it may.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(sql.BEGIN, queue, holder, timedelta(seconds=hold_s))
            if row is not None:
                return row["fence"], row["memory"]
            other = await connection.fetchrow(sql.HOLDER, queue)
        raise ConflictError(
            f"another factory ({other['holder'] or 'unnamed'}) has the queue {queue} until"
            f" {to_wire(other['held_until'])}"
        )

    async def memory(self, queue: str) -> dict[str, Any]:
        """What the queue's factory remembers; empty before its first cycle."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.HOLDER, queue)
        return {} if row is None else row["memory"]

    async def look(self, queue: str, slot: SlotNeeds) -> dict[str, Any]:
        """The fields of a ``FactoryView`` that come from the tables; ``pilots`` is the text of a JSON list."""
        needs = (slot.cores, slot.memory_mib, slot.disk_mib, slot.walltime_s, list(slot.features))
        async with self._database.transaction() as connection:
            demand = await connection.fetchrow(sql.DEMAND, queue, *needs)
            recent = await connection.fetchrow(sql.RECENT, queue)
            return {
                "demand": Demand(**demand),
                "pilots": await connection.fetchval(sql.LIVE_JSON, queue),
                "batches": [RecentBatch(**row) for row in recent["batches"]],
                "queue_s": recent["queue_s"],
                "nodes": [RecentNode(**row) for row in recent["nodes"]],
                "bad_nodes": {row["node"]: row["until"] for row in await connection.fetch(sql.BAD_NODES, queue)},
                "open": [OpenBatch(**row) for row in await connection.fetch(sql.OPEN, queue)],
            }

    async def kinds(self, queue: str) -> dict[str, int]:
        """How many of the queue's pilots do what; what none does is left out."""
        async with self._database.connection() as connection:
            return {row["kind"]: row["n"] for row in await connection.fetch(sql.KINDS, queue)}

    async def end(self, queue: str, end: FactoryEnd) -> None:
        """Keep what the cycle decided and let go of the queue.

        Raises:
            ConflictError: another factory has the queue since.
        """
        async with self._database.transaction() as connection:
            if await connection.fetchval(sql.END, queue, end.fence, end.memory, end.decisions) is None:
                raise ConflictError(f"another factory has taken over the queue {queue}: what this one decided is void")
            await connection.execute(sql.UNBENCH, queue)
            await connection.executemany(sql.BENCH, [(queue, *_bench(bench)) for bench in end.benches])

    async def states(self, queues: Collection[str]) -> Mapping[str, tuple[int, list[str], Any]]:
        """Live pilots, last decisions and time of the last cycle of each queue."""
        async with self._database.connection() as connection:
            live = {row["queue"]: row["n"] for row in await connection.fetch(sql.LIVE_BY_QUEUE)}
            last = {row["queue"]: row for row in await connection.fetch(sql.STATES)}
        found = {}
        for queue in queues:
            row = last.get(queue)
            found[queue] = (live.get(queue, 0), row["decisions"] if row else [], row["cycled_at"] if row else None)
        return found


def _bench(bench: NodeBench) -> tuple[Any, ...]:
    return bench.node, bench.until, bench.reason
