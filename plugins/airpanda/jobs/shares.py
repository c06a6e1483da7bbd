"""Shares on record, set by operators; and beside them what each node of the tree gets now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from airpanda.core.errors import NotFoundError
from airpanda.db.pool import Database
from airpanda.db.sql import counts as counts_sql
from airpanda.db.sql import lanes as lanes_sql
from airpanda.db.sql import shares as sql
from airpanda.jobs.board import Boards, rules_of
from airpanda.jobs.lanes import Lane, lane_of
from airpanda.jobs.matching import Path, Rules, Usage, over_shares, path_of, share_of
from airpanda.messages import ShareKey, ShareNode, ShareSet, SharesView, ShareView


class Shares:
    """Reads and writes ``panda_share``; every gateway goes by what is written within a quarter of a second."""

    def __init__(self, database: Database, boards: Boards) -> None:
        self._database = database
        self._boards = boards

    async def all(self) -> SharesView:
        """What is set, and the tree of those who have jobs that wait or run."""
        async with self._database.connection() as connection, connection.transaction(isolation="repeatable_read"):
            rows = await connection.fetch(lanes_sql.SHARES)
            counts = {row["lane_id"]: row for row in await connection.fetch(counts_sql.LANE_COUNTS)}
            lanes = [lane_of(row) for row in await connection.fetch(lanes_sql.LANES, list(counts))]
        told = sorted((_view(row) for row in rows), key=lambda each: (each.kind, each.name))
        return SharesView(told=told, nodes=tree(lanes, counts, rules_of([], rows)))

    async def put(self, wanted: ShareSet, *, actor: str) -> ShareView:
        """Set; a repeat replaces what was there."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                sql.PUT,
                wanted.kind,
                wanted.name,
                wanted.weight,
                wanted.max_jobs,
                wanted.max_cores,
                wanted.priority_offset,
                actor,
            )
        self._boards.changed()
        return _view(row)

    async def end(self, wanted: ShareKey) -> ShareView:
        """As if nothing had been said of it; the answer is what was.

        Raises:
            NotFoundError: nothing is set for it.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.END, wanted.kind, wanted.name)
        if row is None:
            raise NotFoundError(f"no share is set for {wanted.kind} {wanted.name!r}")
        self._boards.changed()
        return _view(row)


def tree(lanes: Iterable[Lane], counts: Mapping[int, Any], rules: Rules) -> list[ShareNode]:
    """Every node with jobs, parents before their children. ``counts``: ``waiting`` and ``leased`` by lane."""
    usage, waiting = Usage(), defaultdict[Path, int](int)
    for lane in lanes:
        row = counts[lane.lane_id]
        usage.add(lane, row["leased"])
        for node in path_of(lane):
            waiting[node] += row["waiting"]
    over = over_shares([node for node, n in waiting.items() if n], rules, usage)
    below = defaultdict[Path, int](int)
    for path, cores in usage.cores.items():
        below[path[:-1]] += cores
    return [_node(path, waiting[path], over[path], below[path[:-1]], rules, usage) for path in sorted(over)]


def _node(path: Path, waiting: int, over: float, of_all: int, rules: Rules, usage: Usage) -> ShareNode:
    """``of_all``: the cores of the node and its siblings together."""
    actual = usage.cores[path] / of_all if of_all else 0.0
    vo, group, owner = (*path, None, None)[:3]
    return ShareNode(
        vo=vo or "",
        working_group=group,
        owner=owner,
        weight=share_of(path, rules).weight,
        target=round(actual - over, 4),
        actual=round(actual, 4),
        jobs=usage.jobs[path],
        cores=usage.cores[path],
        waiting=waiting,
    )


def _view(row: Any) -> ShareView:
    return ShareView(**dict(row))
