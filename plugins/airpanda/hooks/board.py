"""One question for all who wait: the triggers of a process ask the dispatcher together, whatever their number."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice

import httpx

from airpanda.core.errors import AirpandaError, NotAuthorisedError, NotFoundError, ServiceError
from airpanda.hooks import calls
from airpanda.hooks.address import Address
from airpanda.hooks.asking import aask
from airpanda.hooks.panda import PandaHook
from airpanda.messages import TaskProgress

SLOWEST_POLL_S = 60.0
AT_ONCE = 1000


@dataclass
class Board:
    """Progress of panda tasks by one Connection, in one event loop; ``async with board_of(conn_id)`` gives it.

    ``pause_s`` is the time between two questions: the shortest of those who wait, longer while there is no answer.
    """

    conn_id: str
    users: int = 0
    pause_s: float = 0.0
    _wanted: dict[int, list[asyncio.Future[TaskProgress]]] = field(default_factory=dict)
    _polls: dict[int, float] = field(default_factory=dict)
    _asking: asyncio.Task[None] | None = None
    _address: Address | None = None
    _client: httpx.AsyncClient | None = None

    async def progress(self, task_id: int, *, poll_s: float) -> TaskProgress:
        """The task's progress at the next question.

        Raises:
            NotFoundError: there is no such panda task for this client.
            NotAuthorisedError: the Connection's token is refused, also after it was read again.
            ServiceError: the dispatcher did not answer; asking again is what to do.
        """
        future: asyncio.Future[TaskProgress] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(task_id, []).append(future)
        self._polls[task_id] = poll_s
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_on())
        return await future

    async def close(self) -> None:
        """When nobody waits any more."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking
        if self._client is not None:
            await self._client.aclose()

    async def _ask_on(self) -> None:
        """Until nobody waits. Whoever gets an answer and waits on is among the next."""
        failures = 0
        while self._wanted:
            asked = dict(islice(self._wanted.items(), AT_ONCE))
            poll_s = min(self._polls[task_id] for task_id in asked)
            for task_id in asked:
                del self._wanted[task_id], self._polls[task_id]
            try:
                found = await self._answers(list(asked))
            except AirpandaError as error:
                failures += isinstance(error, ServiceError)
                self.pause_s = min(poll_s * 2.0 ** min(failures, 16), SLOWEST_POLL_S)
                _tell(asked, error)
            except Exception as error:
                _tell(asked, error)
                raise
            else:
                failures, self.pause_s = 0, poll_s
                _answer(asked, found)
            # More than fit into one question do not wait for the next turn.
            if not self._wanted or failures or len(asked) < AT_ONCE:
                await asyncio.sleep(self.pause_s)

    async def _answers(self, task_ids: list[int]) -> dict[int, TaskProgress]:
        try:
            return await self._question(task_ids)
        except NotAuthorisedError:
            if not await self._read_again():
                raise
            return await self._question(task_ids)

    async def _question(self, task_ids: list[int]) -> dict[int, TaskProgress]:
        if self._client is None:
            await self._read_again()
        if self._client is None or self._address is None:
            raise ServiceError(f"Connection {self.conn_id!r} could not be read")
        found = await aask(calls.progress_of(task_ids), self._client, self._address, self.conn_id)
        return {each.task_id: each for each in found}

    async def _read_again(self) -> bool:
        """Take the Connection as it is now; whether it has changed."""
        old, self._address = self._address, await PandaHook(self.conn_id).aaddress()
        if old is None or not old.is_same_place(self._address):
            if self._client is not None:
                await self._client.aclose()
            # Making a TLS context reads files; the triggerer's loop must not wait for them.
            self._client = await asyncio.to_thread(self._address.async_client)
        return old != self._address


def _answer(asked: dict[int, list[asyncio.Future[TaskProgress]]], found: dict[int, TaskProgress]) -> None:
    for task_id, futures in asked.items():
        if task_id not in found:
            _tell({task_id: futures}, NotFoundError(f"there is no panda task {task_id} for this client any more"))
            continue
        for future in futures:
            if not future.done():
                future.set_result(found[task_id])


def _tell(asked: dict[int, list[asyncio.Future[TaskProgress]]], error: Exception) -> None:
    for futures in asked.values():
        for future in futures:
            if not future.done():
                future.set_exception(error)


_BOARDS: dict[tuple[asyncio.AbstractEventLoop, str], Board] = {}


@contextlib.asynccontextmanager
async def board_of(conn_id: str) -> AsyncIterator[Board]:
    """The running loop's board for this Connection; closed when its last user leaves."""
    key = (asyncio.get_running_loop(), conn_id)
    board = _BOARDS.setdefault(key, Board(conn_id))
    board.users += 1
    try:
        yield board
    finally:
        board.users -= 1
        if not board.users:
            del _BOARDS[key]
            await board.close()
