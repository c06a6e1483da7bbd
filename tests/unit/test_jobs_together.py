"""Group commit: what waits goes together, and one bad question harms no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from airpanda.core.errors import RequestError, ServiceError
from airpanda.jobs.together import Together


class Statements:
    """Answers with ten times the question, once let; remembers who went together."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = asyncio.Event()

    async def run(self, _key: str, asks: Sequence[int]) -> list[int]:
        self.groups.append(list(asks))
        await self.go.wait()
        if 0 in asks:
            raise RequestError("none of zero")
        if 99 in asks:
            raise ServiceError("away")
        return [10 * ask for ask in asks]


async def test_who_comes_while_a_statement_runs_goes_with_the_next() -> None:
    statements = Statements()
    together = Together(statements.run)
    first = asyncio.create_task(together.ask("k", 1))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(together.ask("k", n)) for n in (2, 3, 4)]
    elsewhere = asyncio.create_task(together.ask("other", 5))
    await asyncio.sleep(0.01)
    statements.go.set()
    assert await asyncio.gather(first, *others, elsewhere) == [10, 20, 30, 40, 50]
    assert statements.groups == [[1], [5], [2, 3, 4]]


async def test_those_of_one_turn_go_together_and_no_more_than_may() -> None:
    statements = Statements()
    statements.go.set()
    together = Together(statements.run, weight=lambda n: n, most=10)
    assert await asyncio.gather(*(together.ask("k", n) for n in (4, 5, 6, 50, 1))) == [40, 50, 60, 500, 10]
    assert statements.groups == [[4, 5], [6], [50], [1]]


async def test_a_bad_question_is_answered_alone() -> None:
    statements = Statements()
    statements.go.set()
    together = Together(statements.run)
    found = await asyncio.gather(*(together.ask("k", n) for n in (1, 0, 2)), return_exceptions=True)
    assert isinstance(found[1], RequestError)
    assert [found[0], found[2]] == [10, 20]
    assert statements.groups == [[1, 0, 2], [1], [0], [2]]


async def test_a_service_that_is_away_is_asked_once() -> None:
    statements = Statements()
    statements.go.set()
    together = Together(statements.run)
    found = await asyncio.gather(*(together.ask("k", n) for n in (1, 99, 2)), return_exceptions=True)
    assert all(isinstance(each, ServiceError) for each in found)
    assert statements.groups == [[1, 99, 2]]
    assert await together.ask("k", 3) == 30, "and serves again afterwards"


async def test_who_has_gone_is_not_asked_for() -> None:
    statements = Statements()
    together = Together(statements.run)
    first = asyncio.create_task(together.ask("k", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone, stays = (asyncio.create_task(together.ask("k", n)) for n in (2, 3))
    await asyncio.sleep(0)
    gone.cancel()
    statements.go.set()
    assert await asyncio.gather(first, stays) == [10, 30]
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert statements.groups == [[1], [3]]


async def test_who_comes_right_after_a_statement_waits_for_company() -> None:
    statements = Statements()
    statements.go.set()
    together = Together(statements.run, pause_s=1.0)
    started = time.perf_counter()
    assert await together.ask("k", 1) == 10
    assert time.perf_counter() - started < 0.9, "the first one waits for nobody"
    second = asyncio.create_task(together.ask("k", 2))
    await asyncio.sleep(0.01)
    assert await asyncio.gather(second, together.ask("k", 3)) == [20, 30]
    assert statements.groups == [[1], [2, 3]]
