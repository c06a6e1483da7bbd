"""The reports that nearly every attempt makes: "alive", a step ahead, the good end. Many pilots in one statement."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airpanda.core.errors import AirpandaError
from airpanda.core.secret import Secret
from airpanda.db import states
from airpanda.db.pool import Database
from airpanda.db.sql import reports as sql
from airpanda.jobs.claims import digest
from airpanda.jobs.together import Together
from airpanda.messages import JobReport, JobStatus

_ON_THE_WAY = (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.HOLDING)
SETTLE_AFTER_S = 0.5
_BEFORE = {
    status.value: f",{','.join(old for old in states.LEASED if status in states.SAME_ATTEMPT[old] or status is old)},"
    for status in (*_ON_THE_WAY, JobStatus.FINISHED)
}
"""Where a report finds a job that it takes a step ahead, or leaves in its status."""


@dataclass(frozen=True)
class Lease:
    """What fences one attempt: nobody else's reports count."""

    panda_id: int
    attempt_nr: int
    pilot_id: int
    token: Secret[str]

    @property
    def key(self) -> tuple[int, int, int, bytes]:
        return self.panda_id, self.attempt_nr, self.pilot_id, digest(self.token)


class Reports:
    """Applies them. What it answers is kept; to what it does not answer nothing has happened."""

    def __init__(self, database: Database, *, lease: timedelta) -> None:
        self._database = database
        self._lease = lease
        self._beats = Together(self._heartbeats)
        self._moves = Together(self._move)
        self._bad = Together(self._count_bad)
        self._good: Counter[int] = Counter()
        self._settling: asyncio.Task[None] | None = None
        self._one_settles = asyncio.Lock()

    async def plain(self, lease: Lease, report: JobReport) -> Any:
        """``lease_expires_at``, ``command`` and ``debug``; None: this report is decided elsewhere, alone."""
        if report.job_status in _ON_THE_WAY and _is_bare(report):
            row = await self._beats.ask(None, (*lease.key, report.job_status))
            if row is not None:
                return row
        before = _BEFORE.get(report.job_status)
        if before is None or not _is_plain(report):
            return None
        said = (*notes(report, JobStatus(report.job_status)), *lease.key[2:], before)
        return await self._moves.ask(None, said)

    async def count_end(self, pilot_id: int, *, good: bool) -> None:
        """What a node's score is made of; after the end is kept.

        A bad end is counted at once: the node may have to be kept from the next job. Good ones go together, a little
        later, and those of a process that dies before are not counted.
        """
        if not good:
            await self._bad.ask(None, pilot_id)
            return
        self._good[pilot_id] += 1
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle_later())

    async def settle(self) -> None:
        """Count the good ends that are not counted yet. Those that cannot be are counted with the next ones."""
        async with self._one_settles:  # whoever comes second finds all of them counted
            left = {pilot_id: (n, 0) for pilot_id, n in self._good.items()}
            self._good.clear()
            try:
                await self._count_all(left)
            finally:
                self._good.update({pilot_id: n for pilot_id, (n, _) in left.items()})

    async def _settle_later(self) -> None:
        try:
            await asyncio.sleep(SETTLE_AFTER_S)
        finally:
            self._settling = None
        with contextlib.suppress(AirpandaError):  # the database is away; the next end tries again
            await self.settle()

    async def _heartbeats(self, _key: None, beats: Sequence[tuple[Any, ...]]) -> list[Any]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.HEARTBEATS, *zip(*beats, strict=True), self._lease)
        return _in_order(rows, len(beats))

    async def _move(self, _key: None, said: Sequence[tuple[Any, ...]]) -> list[Any]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.MOVES, *zip(*said, strict=True), self._lease)
        return _in_order(rows, len(said))

    async def _count_bad(self, _key: None, pilot_ids: Sequence[int]) -> list[None]:
        await self._count_all({pilot_id: (0, n) for pilot_id, n in Counter(pilot_ids).items()})
        return [None] * len(pilot_ids)

    async def _count_all(self, left: dict[int, tuple[int, int]]) -> None:
        """Good and bad ends of each pilot; takes out of ``left`` what is counted."""
        if not left:
            return
        good, bad = zip(*left.values(), strict=True)
        async with self._database.connection() as connection:
            for row in await connection.fetch(sql.COUNT_ENDS, list(left), good, bad):
                del left[row["pilot_id"]]
            for pilot_id in list(left):
                await connection.execute(sql.COUNT_ENDS_ALONE, pilot_id, *left[pilot_id])
                del left[pilot_id]


def notes(report: JobReport, status: JobStatus) -> tuple[Any, ...]:
    """What is noted of the attempt: the first columns of the statements in ``db.sql.reports``."""
    use = report.use
    return (
        report.job_id,
        report.attempt_nr,
        status.value,
        report.node,
        report.pilot_uid,
        report.account_name,
        report.account_uid,
        report.identity_switched,
        report.trans_exit_code,
        json.dumps([error.model_dump(mode="json") for error in report.errors]),
        use.wall_s if use else None,
        use.cpu_s if use else None,
        use.max_rss_mib if use else None,
        report.log_tail,
        status.is_final,
        report.launcher.model_dump_json() if report.launcher else None,
    )


def _in_order(rows: Sequence[Any], n: int) -> list[Any]:
    by_nr = {row["nr"]: row for row in rows}
    return [by_nr.get(nr) for nr in range(1, n + 1)]


def _is_bare(report: JobReport) -> bool:
    """A heartbeat that says nothing but "alive"."""
    return report.model_fields_set <= {"job_id", "attempt_nr", "token", "job_status", "node"}


def _is_plain(report: JobReport) -> bool:
    """One that changes nothing but the job and its attempt."""
    return not (report.errors or report.credential_event or report.samples or report.debug_output or report.stored)
