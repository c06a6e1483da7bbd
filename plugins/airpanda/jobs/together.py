"""Group commit: what is asked while a statement runs goes into the next one, together.

Each question is answered only after the transaction of its statement is kept, so that nothing is promised that a crash
could take back; and many of them wait for the disk once.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from airpanda.core.errors import ServiceError

Key = TypeVar("Key", bound=Hashable)
Ask = TypeVar("Ask")
Answer = TypeVar("Answer")

MOST = 100
PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.005
"""The next statement waits after one for company, as long as that one took, within these bounds.

One for ten costs little more than one for one; and the longer they take, the busier is the database, or the more of us
ask it.
"""


@dataclass
class _Line(Generic[Ask, Answer]):
    """Those who ask for the same; ``is_served``: a statement for them is on its way, or the next one waits."""

    waiting: deque[tuple[Ask, asyncio.Future[Answer]]] = field(default_factory=deque)
    is_served: bool = False


class Together(Generic[Key, Ask, Answer]):
    """Runs ``statement`` for all that asked under one key since the last one began.

    Args:
        statement: answers each of its questions, in their order, in one transaction.
        weight: how much of ``most`` a question takes.
        most: of one statement, in weights; a single question may be heavier.
        pause_s: the least from the end of one to the beginning of the next; who finds none running waits for nothing.
    """

    def __init__(
        self,
        statement: Callable[[Key, Sequence[Ask]], Awaitable[Sequence[Answer]]],
        *,
        weight: Callable[[Ask], int] = lambda _ask: 1,
        most: int = MOST,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._statement = statement
        self._weight, self._most, self._pause_s = weight, most, pause_s
        self._lines: dict[Key, _Line[Ask, Answer]] = defaultdict(_Line)
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, key: Key, ask: Ask) -> Answer:
        """The answer to this one. Raises what ``statement`` raises for it alone.

        A failure of the service is everybody's; anything else is that question's own, and harms no other.
        """
        line = self._lines[key]
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        line.waiting.append((ask, answer))
        if not line.is_served:  # two at once would halve the company, and gain nothing
            line.is_served = True
            task = asyncio.create_task(self._serve(key, line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _serve(self, key: Key, line: _Line[Ask, Answer]) -> None:
        try:
            while group := self._next(line):
                began = time.monotonic()
                await self._run(key, group)
                took_s = time.monotonic() - began
                await asyncio.sleep(max(self._pause_s, min(took_s, LONGEST_PAUSE_S)))
        finally:
            line.is_served = False
            if not line.waiting:
                self._lines.pop(key, None)

    def _next(self, line: _Line[Ask, Answer]) -> list[tuple[Ask, asyncio.Future[Answer]]]:
        group: list[tuple[Ask, asyncio.Future[Answer]]] = []
        weight = 0
        while line.waiting and (not group or weight + self._weight(line.waiting[0][0]) <= self._most):
            ask, answer = line.waiting.popleft()
            if not answer.done():  # who asked has gone
                group.append((ask, answer))
                weight += self._weight(ask)
        return group

    async def _run(self, key: Key, group: list[tuple[Ask, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._statement(key, [ask for ask, _ in group])
        except Exception as error:  # noqa: BLE001
            # The outermost frame of a task of ours: whatever it is goes to those who asked, and ends nobody else's.
            if len(group) == 1 or isinstance(error, ServiceError):
                _tell(group, error)
            else:
                for each in group:
                    await self._run(key, [each])
        except BaseException:
            for _, answer in group:
                answer.cancel()
            raise
        else:
            for (_, answer), found in zip(group, answers, strict=True):
                if not answer.done():
                    answer.set_result(found)


def _tell(group: list[tuple[Ask, asyncio.Future[Answer]]], error: Exception) -> None:
    for _, answer in group:
        if not answer.done():
            answer.set_exception(error)
