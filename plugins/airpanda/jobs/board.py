"""The board: what this process knows of waiting jobs, lane by lane. Claims are matched with it; the database decides.

It is read again when it is older than ``MAX_AGE_S``, after each of our own changes, and when it shows a pilot nothing
(at most every ``IDLE_AGE_S``, so that idle pilots share one look).

Where the first job of each lane stands is remembered, and the next look begins there: rows of jobs that are taken
already are not read again, even while somebody's open transaction keeps vacuum from removing them. That a transaction
with a lower number may end later is why a look never moves beyond what had begun when it was taken, and goes back to
the first transaction that was open then and has ended since.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airpanda.core.errors import AirpandaError
from airpanda.db.pool import Database
from airpanda.db.sql import lanes as sql
from airpanda.jobs.lanes import Lane, lane_of
from airpanda.jobs.matching import (
    BY_AGE_EVERY,
    Candidate,
    Offered,
    Position,
    Refusal,
    Rules,
    Share,
    Usage,
    ban_of,
    ranked,
    refusal,
    room,
)

MAX_AGE_S = 0.25
AHEAD_S = 0.15
"""From this age on the next look is on its way while claims go on with this one: they rarely wait for it."""
IDLE_AGE_S = 0.05
MAX_OFFERS = 1000
_START: Position = (0, 0)


@dataclass(frozen=True)
class Choice:
    """Claim at most ``n`` jobs of lane ``number``, which none of stands before ``start``."""

    candidate: Candidate
    start: Position
    n: int


@dataclass
class Claim:
    """What came of a claim: where stood what it took. Of a pilot that is not served it says nothing."""

    positions: list[Position] = field(default_factory=list)
    is_served: bool = True


@dataclass
class QueueBoard:
    """One queue, as of the look that began at ``begun_at``."""

    begun_at: float = float("-inf")
    heads: dict[int, Candidate] = field(default_factory=dict)
    starts: dict[int, Position] = field(default_factory=dict)
    """Nobody waits before these; of lanes that were empty, too."""
    hints: dict[int, Position] = field(default_factory=dict)
    """Where our own claims since then have come to."""
    dry: set[int] = field(default_factory=set)
    still_open: frozenset[int] = frozenset()
    usage: Usage = field(default_factory=Usage)
    rules: Rules = field(default_factory=Rules)
    choices: int = 0
    ranking: dict[Offered, tuple[int, list[Candidate]]] = field(default_factory=dict)

    def choose(self, offered: Offered, n: int) -> Choice | None:
        """The lane to claim from next; None: there is nothing for this pilot here."""
        self.choices += 1
        for each in self._ranked(offered):
            if each.number in self.dry:
                continue
            left = room(each.lane, self.rules, self.usage, n)
            if not isinstance(left, Refusal):
                return Choice(each, self.hints.get(each.number, each.head), left)
        return None

    def taken(self, choice: Choice, positions: Iterable[Position]) -> None:
        """What a claim has brought; fewer than wanted: the lane has no more for now."""
        number, found = choice.candidate.number, list(positions)
        if len(found) < choice.n:
            self.dry.add(number)
        if found:
            self.hints[number] = max(self.hints.get(number, _START), *found)

    def _ranked(self, offered: Offered) -> list[Candidate]:
        """Ranked anew for each choice where there are few lanes, now and then where there are many."""
        by_age = self.choices % BY_AGE_EVERY == 0
        until, found = self.ranking.get(offered, (0, []))
        if self.choices >= until or by_age:
            fitting = [
                each
                for each in self.heads.values()
                if refusal(each.lane, offered) is None and ban_of(each.lane, self.rules) is None
            ]
            found = fitting
            if len(fitting) > 1:
                found = ranked(fitting, self.rules, self.usage, by_age=by_age)
            if by_age:
                return found
            if len(self.ranking) >= MAX_OFFERS:
                self.ranking.clear()
            self.ranking[offered] = (self.choices + 1 + len(found) // 16, found)
        return found


class _Ledger:
    """Our claims that a look may not have counted: running ones, and those that ended after it began."""

    def __init__(self) -> None:
        self._claims: dict[int, tuple[Lane, int, float | None]] = {}
        self._next = 0

    def begin(self, lane: Lane, n: int) -> int:
        self._next += 1
        self._claims[self._next] = (lane, n, None)
        return self._next

    def end(self, key: int, n: int, now: float) -> None:
        lane, _, _ = self._claims.pop(key)
        if n:
            self._claims[key] = (lane, n, now)

    def not_before(self, begun_at: float, *, oldest: float) -> list[tuple[Lane, int]]:
        """Those that matter for a look that began then; forgotten is what is older than the ``oldest`` under way."""
        self._claims = {key: each for key, each in self._claims.items() if each[2] is None or each[2] >= oldest}
        return [(lane, n) for lane, n, ended_at in self._claims.values() if ended_at is None or ended_at >= begun_at]


class Boards:
    """The boards of all queues, in this process.

    What is in use is one for all of them, from whichever queue's look it comes: caps and shares are of all queues.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._boards: dict[str, QueueBoard] = defaultdict(QueueBoard)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ledger = _Ledger()
        self._looking: dict[str, float] = {}
        self._lanes: dict[int, Lane] = {}
        self._ahead: dict[str, asyncio.Task[None]] = {}
        self._changed_at = float("-inf")

    def changed(self) -> None:
        """We have let jobs wait, or changed who may have them: look again before the next claim."""
        self._changed_at = self._clock()

    async def current(self, queue: str) -> QueueBoard:
        """The board of a queue, at most ``MAX_AGE_S`` old and younger than our own changes."""
        now = self._clock()
        board = await self._younger(queue, max(now - MAX_AGE_S, self._changed_at))
        if board.begun_at < now - AHEAD_S and queue not in self._ahead:
            self._ahead[queue] = asyncio.create_task(self._look_ahead(queue, now - AHEAD_S))
        return board

    async def _look_ahead(self, queue: str, begun_after: float) -> None:
        try:
            await self._younger(queue, begun_after)
        except AirpandaError:
            pass  # whoever finds the board too old looks again, and says it
        finally:
            del self._ahead[queue]

    async def again(self, queue: str) -> QueueBoard:
        """For a pilot to whom ``current`` showed nothing."""
        age_s = 0.0 if self._boards[queue].dry else IDLE_AGE_S
        return await self._younger(queue, max(self._clock() - age_s, self._changed_at))

    @contextlib.contextmanager
    def claiming(self, queue: str, choice: Choice) -> Iterator[Claim]:
        """Around a claim, which tells what came of it."""
        lane, board = choice.candidate.lane, self._boards[queue]
        claim = Claim()
        key = self._ledger.begin(lane, choice.n)
        board.usage.add(lane, choice.n)
        try:
            yield claim
        finally:
            n = len(claim.positions)
            self._ledger.end(key, n, self._clock())
            now_current = self._boards[queue]
            now_current.usage.add(lane, n - choice.n)
            if claim.is_served:
                now_current.taken(choice, claim.positions)

    async def _younger(self, queue: str, begun_after: float) -> QueueBoard:
        if self._boards[queue].begun_at < begun_after:
            async with self._locks[queue]:  # those who wait here share the next look
                if self._boards[queue].begun_at < begun_after:
                    self._looking[queue] = self._clock()
                    try:
                        self._boards[queue] = board = await self._look(queue, self._looking[queue])
                    finally:
                        del self._looking[queue]
                    for each in self._boards.values():
                        each.usage = board.usage
        return self._boards[queue]

    async def _look(self, queue: str, begun_at: float) -> QueueBoard:
        old = self._boards[queue]
        async with self._database.connection() as connection:
            snapshot = await connection.fetchrow(sql.SNAPSHOT)  # before the rest
            still_open, end = frozenset(snapshot["open"]), (snapshot["xmax"], 0)
            starts = _gone_back(old, still_open)
            rows = await connection.fetch(sql.HEADS, queue, *_columns(starts))
            used = await connection.fetch(sql.USE)
            await self._learn(connection, {abs(row["lane"]) for row in rows} | {row["lane_id"] for row in used})
        heads = {row["lane"]: self._candidate(row) for row in rows if row["panda_id"] is not None}
        seen = starts.keys() | {row["lane"] for row in rows}
        usage = Usage()
        for row in used:
            usage.add(self._lanes[row["lane_id"]], row["leased"])
        for lane, n in self._ledger.not_before(begun_at, oldest=min(self._looking.values())):
            usage.add(lane, n)
        return QueueBoard(
            begun_at=begun_at,
            heads=heads,
            starts={number: min(heads[number].head, end) if number in heads else end for number in seen},
            still_open=still_open,
            usage=usage,
            rules=rules_of(snapshot["bans"], snapshot["shares"]),
            choices=old.choices,
        )

    def _candidate(self, row: Any) -> Candidate:
        lane = self._lanes[abs(row["lane"])]
        return Candidate(lane, is_retry=row["lane"] < 0, head=(row["activated_xid"], row["panda_id"]))

    async def _learn(self, connection: Any, lane_ids: set[int]) -> None:
        unknown = lane_ids - self._lanes.keys()
        if unknown:
            for row in await connection.fetch(sql.LANES, list(unknown)):
                self._lanes[row["lane_id"]] = lane_of(row)


def _columns(starts: Mapping[int, Position]) -> tuple[list[int], list[int], list[int]]:
    return list(starts), [xid for xid, _ in starts.values()], [panda_id for _, panda_id in starts.values()]


def rules_of(bans: Iterable[Any], shares: Iterable[Any]) -> Rules:
    """Rows of ``panda_ban`` and ``panda_share``."""
    banned: dict[str, dict[str, str]] = {"dn": {}, "fqan": {}}
    for row in bans:
        banned[row["kind"]][row["name"]] = row["reason"]
    return Rules(
        shares={
            (row["kind"], row["name"]): Share(row["weight"], row["max_jobs"], row["max_cores"], row["priority_offset"])
            for row in shares
        },
        banned_dns=banned["dn"],
        banned_fqans=banned["fqan"],
    )


def _gone_back(board: QueueBoard, still_open: frozenset[int]) -> dict[int, Position]:
    """Where to look from: not beyond what was open at the last look and has ended since."""
    ended = board.still_open - still_open
    if not ended:
        return board.starts
    back = (min(ended), 0)
    return {number: min(start, back) for number, start in board.starts.items()}
