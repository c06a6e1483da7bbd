"""Claims: waiting jobs go to the pilots that ask for them, many pilots in one statement."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airpanda.core.errors import ServiceError
from airpanda.core.secret import Secret
from airpanda.credentials.errors import UnreadableCredentialError
from airpanda.credentials.registry import CredentialRegistry
from airpanda.db.pool import Database
from airpanda.db.sql import claims as sql
from airpanda.jobs.board import Boards, Choice
from airpanda.jobs.matching import Offered, Position
from airpanda.jobs.silence import Silence
from airpanda.jobs.together import Together
from airpanda.messages import AcquiredJob, CredentialPointer, JobSpec, PilotOffer

_log = logging.getLogger(__name__)
MAX_CLAIMS = 16
"""Lanes that one request may try; each of them was not empty a moment ago."""


@dataclass(frozen=True)
class _Lane:
    """Whose claims go together: they differ in the pilot and its node only."""

    queue: str
    number: int
    pilot_dn: str | None
    avoid_owners: tuple[str, ...]


@dataclass(frozen=True)
class _Ask:
    pilot_id: int
    node: str
    start: Position
    digests: list[bytes]


_RAISED = ("memory_mib", "walltime_s")
_Found = tuple[list[Any | None] | None, dict[int, CredentialPointer]]


class Claims:
    """Gives jobs to pilots.

    Args:
        give_up: ends an attempt that its pilot never hears of, because its credential cannot be opened.
    """

    def __init__(
        self,
        database: Database,
        credentials: CredentialRegistry,
        boards: Boards,
        *,
        silence: Silence,
        heartbeat: timedelta,
        give_up: Callable[[Any, UnreadableCredentialError], Awaitable[None]],
    ) -> None:
        self._database = database
        self._credentials = credentials
        self._boards = boards
        self._silence = silence
        self._heartbeat_s = heartbeat.total_seconds()
        self._give_up = give_up
        self._together = Together(self._statement, weight=lambda ask: len(ask.digests))

    async def acquire(
        self, offer: PilotOffer, *, pilot_id: int, queue: str, pilot_dn: str | None, token_only: bool = False
    ) -> list[AcquiredJob] | None:
        """As ``JobStore.acquire``."""
        if pilot_dn is None and not token_only:
            return []
        taken: list[AcquiredJob] = []
        try:
            is_known = await self._take(taken, offer, pilot_id, queue, pilot_dn)
        except ServiceError as error:  # what is leased already nobody else could answer
            if not taken:
                raise
            _log.warning("pilot_id=%s gets %s jobs instead of %s: %s", pilot_id, len(taken), offer.n_jobs, error)
            return taken
        return taken if taken or is_known else None

    async def _take(
        self, taken: list[AcquiredJob], offer: PilotOffer, pilot_id: int, queue: str, pilot_dn: str | None
    ) -> bool:
        """Add to ``taken`` lane by lane; False: this pilot is not known to be served."""
        offered = _offered(offer, pilot_dn)
        looked_again = False
        for _ in range(MAX_CLAIMS):
            board = await self._boards.current(queue)
            choice = board.choose(offered, offer.n_jobs - len(taken))
            if choice is not None:
                found = await self._claim(offer, choice, pilot_id, queue, pilot_dn)
                if found is None:
                    return False
                taken += found
            elif looked_again or taken or await self._boards.again(queue) is board:
                break
            else:
                looked_again = True
            if len(taken) == offer.n_jobs:
                break
        return True

    async def _claim(
        self, offer: PilotOffer, choice: Choice, pilot_id: int, queue: str, pilot_dn: str | None
    ) -> list[AcquiredJob] | None:
        """At most so many jobs of the chosen lane; None: this pilot is not known to be served."""
        tokens = [Secret.random() for _ in range(choice.n)]
        lane = _Lane(queue, choice.candidate.number, pilot_dn, tuple(sorted(set(offer.avoid_owners))))
        with self._boards.claiming(queue, choice) as claim:
            ask = _Ask(pilot_id, offer.node, choice.start, [digest(token) for token in tokens])
            rows, pointers = await self._together.ask(lane, ask)
            claim.is_served = rows is not None
            taken = [(n, row) for n, row in enumerate(rows or ()) if row is not None and row["panda_id"] is not None]
            claim.positions += [(row["activated_xid"], row["panda_id"]) for _, row in taken]
        if rows is None:
            return None
        jobs: list[AcquiredJob] = []
        for n, row in taken:
            try:
                jobs.append(self._acquired(row, tokens[n], pointers))
            except UnreadableCredentialError as error:
                await self._given_up(row, error)
        return jobs

    async def _given_up(self, row: Any, error: UnreadableCredentialError) -> None:
        """Where the store does not answer the lease runs out, and the others of this claim are answered."""
        try:
            await self._give_up(row, error)
        except ServiceError as away:
            _log.warning("panda_id=%s stays leased, and nobody has it (%s): %s", row["panda_id"], error, away)

    async def _statement(self, lane: _Lane, asks: Sequence[_Ask]) -> list[_Found]:
        """The rows of each ask, one for each of its tokens; None for a pilot that is not served.

        A pilot's row may be let go by who held it between two tokens of one ask: only some have a row then.

        With a place for opened credentials, of which there are few behind many jobs: it ends with the answers.
        """
        pilots = [ask.pilot_id for ask in asks for _ in ask.digests]
        nodes = [ask.node for ask in asks for _ in ask.digests]
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                sql.ACQUIRE,
                lane.number,
                *min(ask.start for ask in asks),
                lane.pilot_dn,
                [each for ask in asks for each in ask.digests],
                pilots,
                self._silence.lease,
                nodes,
                self._credentials.key_ids,
                lane.pilot_dn is None,
                lane.avoid_owners,
                lane.queue,
                self._silence.suspected,
            )
        by_nr = {row["nr"]: row for row in rows}
        found: list[_Found] = []
        pointers: dict[int, CredentialPointer] = {}
        nr = 1
        for ask in asks:
            last = nr + len(ask.digests)
            rows_of = [by_nr.get(each) for each in range(nr, last)]
            found.append((rows_of if any(row is not None for row in rows_of) else None, pointers))
            nr = last
        return found

    def _acquired(self, row: Any, token: Secret[str], pointers: dict[int, CredentialPointer]) -> AcquiredJob:
        pointer = pointers.get(row["credential_id"])
        if pointer is None:
            pointer = pointers[row["credential_id"]] = self._credentials.pointer(row)
        return AcquiredJob(
            panda_id=row["panda_id"],
            attempt_nr=row["attempt_nr"],
            token=token.reveal(),
            lease_expires_at=row["lease_expires_at"],
            heartbeat_s=self._heartbeat_s,
            owner_dn=row["owner_dn"],
            spec=_as_asked_now(JobSpec.model_validate_json(row["spec"]), row),
            credential=pointer,
        )


def digest(token: Secret[str]) -> bytes:
    """What is stored of a lease token: it has 256 random bits, so a plain hash keeps it."""
    return hashlib.sha256(token.reveal().encode()).digest()


def _offered(offer: PilotOffer, pilot_dn: str | None) -> Offered:
    return Offered(
        cores=offer.cores,
        memory_mib=offer.memory,
        disk_mib=offer.disk_space,
        walltime_s=offer.remaining_time,
        features=frozenset(offer.features),
        avoid_owners=frozenset(offer.avoid_owners),
        retriever_dn=pilot_dn,
    )


def _as_asked_now(spec: JobSpec, row: Any) -> JobSpec:
    """With what retry rules have raised, and with shared scripts; the job's own script of a name wins."""
    changes: dict[str, Any] = {name: row[name] for name in _RAISED if row[name] != getattr(spec, name)}
    if row["shared_scripts"]:
        changes["scripts"] = json.loads(row["shared_scripts"]) | spec.scripts
    return spec.model_copy(update=changes) if changes else spec
