"""What keeps the store true when nobody reports: silent pilots, what stays as it is for too long, counts.

Every method is one transaction, safe to repeat and to run twice at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from airpanda.core.errors import ConfigurationError, RequestError
from airpanda.credentials.registry import CredentialRegistry
from airpanda.db.pool import Database, translated, values_refused
from airpanda.db.sql import counts as counts_sql
from airpanda.db.sql import jobs as sql
from airpanda.db.sql import pilots as pilots_sql
from airpanda.jobs.board import Boards
from airpanda.jobs.ends import AttemptEnds
from airpanda.jobs.progress import suspected_of
from airpanda.jobs.rules import lost_heartbeat, took_too_long
from airpanda.jobs.silence import Silence
from airpanda.messages import NOBODY_TOOK_IT, JobError, JobStatus

BATCH = 500
MANY_CHANGES = 1000
MAX_LOOKS = 5000
_log = logging.getLogger(__name__)
_NO_CREDENTIAL = "the owner's credential is gone or ends before the job's time limit: stage a fresh one and retry"
_NO_KEY = (
    "the passphrase of the owner's credential was sealed with a Fernet key that is configured no more: the operators of"
    " this service must put that key back behind the new one, or the owner stage a fresh credential; then retry"
)
_NO_CONSENT = (
    "the owner's consent to this client and queue has been taken back or has ended: the owner must consent again"
    " (airpanda proxy consent); then retry"
)


class Upkeep:
    """What the watchdog does; ``dispatcher.watchdog`` has its loops."""

    def __init__(
        self,
        database: Database,
        credentials: CredentialRegistry,
        boards: Boards,
        ends: AttemptEnds,
        *,
        silence: Silence,
    ) -> None:
        self._database = database
        self._credentials = credentials
        self._boards = boards
        self._ends = ends
        self._silence, self._lease = silence, silence.lease

    async def expire(self) -> list[int]:
        """Take jobs from silent pilots; answer their PandaIDs."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(sql.SILENT, BATCH)
            taken = await self._take(connection, rows, lambda _row: lost_heartbeat())
            pilots = [row["pilot_id"] for row in rows]
            await connection.execute(pilots_sql.LOST, pilots, "lost heartbeat", self._lease)
        if taken:
            self._boards.changed()
        return taken

    async def end_overdue(self, longest: Mapping[str, timedelta]) -> list[int]:
        """Take jobs that were in a state for too long from their pilots, alive or not.

        A job is looked at when its pilot could be suspected, so that it keeps it for so much longer at most.
        """
        leased = {state: after for state, after in longest.items() if state != JobStatus.ACTIVATED}

        def too_long(row: Any) -> JobError:
            status = JobStatus(row["status"])
            return took_too_long(status, int(leased[status].total_seconds()))

        async with self._database.transaction() as connection:
            rows = await connection.fetch(sql.OVERDUE, BATCH, list(leased), list(leased.values()))
            taken = await self._take(connection, rows, too_long)
        if taken:
            self._boards.changed()
        return taken

    async def _take(self, connection: Any, rows: Sequence[Any], error_of: Callable[[Any], JobError]) -> list[int]:
        """End the attempts of these jobs; answer which. What the store refuses of one job holds up no other."""
        taken: list[int] = []
        for row in rows:
            try:
                with values_refused(), translated():
                    async with connection.transaction():
                        await self._ends.take(connection, row, error_of(row))
            except ConfigurationError:  # the tables are missing: everybody's
                raise
            except RequestError as error:
                _log.error("panda_id=%s cannot be taken from its pilot: %s", row["panda_id"], error)
            else:
                taken.append(row["panda_id"])
        return taken

    async def move_checks_on(self) -> int:
        """What was due to be looked at and is well is due again when it could be suspected; answer how many.

        After ``expire`` and ``end_overdue``, which look only at what is due.
        """
        async with self._database.connection() as connection:
            done = await connection.execute(sql.LOOKED_AT, MAX_LOOKS, self._silence.margin)
        return int(done.split()[-1])

    async def close_overdue(self, longest: timedelta) -> int:
        """Close jobs that have waited for too long; answer how many, at most some of each lane."""
        says = f"{NOBODY_TOOK_IT} {int(longest.total_seconds())} s"
        async with self._database.transaction() as connection:
            done = await connection.execute(sql.CLOSE_OVERDUE, says, BATCH, longest)
        return int(done.split()[-1])

    async def close_without_credential(self) -> int:
        """Close waiting jobs whose credential cannot serve them any more, saying why; answer how many.

        The jobs of a banned owner wait: what a mistaken ban stopped goes on when the ban is lifted.
        """
        async with self._database.transaction() as connection:
            done = [
                await connection.execute(sql.CLOSE_WITHOUT_CREDENTIAL, _NO_CREDENTIAL, BATCH),
                await connection.execute(sql.CLOSE_WITHOUT_KEY, _NO_KEY, BATCH, self._credentials.key_ids),
                await connection.execute(sql.CLOSE_WITHOUT_CONSENT, _NO_CONSENT, BATCH),
            ]
        return sum(int(each.split()[-1]) for each in done)

    async def count_suspected(self) -> int:
        """How many jobs are with pilots that are suspected; cheap as long as a watchdog runs."""
        async with self._database.connection() as connection:
            return sum((await suspected_of(connection, None, self._silence.margin)).values())

    async def fold_counts(self) -> None:
        """Fold fresh changes into the counts. They are exact whenever it runs, and without it."""
        async with self._database.transaction() as connection:
            if await connection.fetchval(counts_sql.FOLD_LOCK):
                await connection.execute(counts_sql.FOLD)

    async def keep_counts_short(self) -> None:
        """Fold where so many changes are fresh that reading the counts takes milliseconds."""
        async with self._database.connection() as connection:
            if not await connection.fetchval(counts_sql.IS_LONG, MANY_CHANGES):
                return
        await self.fold_counts()
