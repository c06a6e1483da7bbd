"""How far a panda task is: jobs by state, and how many of them are with pilots that are suspected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airpanda.db.sql import counts as sql
from airpanda.messages import JobStatus, TaskProgress


async def counts_of(connection: Any, task_ids: list[int]) -> Mapping[int, dict[JobStatus, int]]:
    """Jobs by state of each; exact, and as cheap for a million jobs as for one."""
    counts: dict[int, dict[JobStatus, int]] = defaultdict(dict)
    for row in await connection.fetch(sql.COUNTS_OF, task_ids):
        counts[row["task_id"]][JobStatus(row["status"])] = row["n"]
    return counts


async def suspected_of(connection: Any, task_ids: list[int] | None, margin: timedelta) -> Mapping[int, int]:
    """How many jobs of each (None: of every panda task) are with pilots whose lease has ``margin`` left, or less."""
    return {row["task_id"]: row["n"] for row in await connection.fetch(sql.SUSPECTED, task_ids, margin)}


async def progress_of(connection: Any, task: Any, margin: timedelta, *, note: str = "") -> TaskProgress:
    """That of one panda task, whose row this is."""
    task_id = task["task_id"]
    counts = (await counts_of(connection, [task_id]))[task_id]
    suspected = (await suspected_of(connection, [task_id], margin)).get(task_id, 0)
    return progress(task_id, task["n_jobs"], counts, suspected, note=note)


def progress(task_id: int, total: int, counts: dict[JobStatus, int], suspected: int, *, note: str = "") -> TaskProgress:
    """It is done when every job is final."""
    return TaskProgress(
        task_id=task_id, counts=counts, total=total, done=n_final(counts) == total, note=note, suspected=suspected
    )


def n_final(counts: Mapping[JobStatus, int]) -> int:
    """How many have ended."""
    return sum(n for status, n in counts.items() if status.is_final)
