"""Why is my job waiting: one sentence, from what matches pilots with jobs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from airpanda.core.errors import NotFoundError
from airpanda.db.pool import Database
from airpanda.db.sql import counts as counts_sql
from airpanda.db.sql import waiting as sql
from airpanda.jobs.board import Boards, QueueBoard
from airpanda.jobs.matching import Candidate, Lack, Offered, Refusal, ban_of, ranked, refusal, room, user_priority
from airpanda.jobs.removed import not_found
from airpanda.jobs.silence import Silence
from airpanda.messages import JobStatus, WaitingView


class Waiting:
    """Answers for one job. Reads only."""

    def __init__(self, database: Database, boards: Boards, *, silence: Silence) -> None:
        self._database = database
        self._silence = silence
        self._boards = boards

    async def why(
        self, panda_id: int, slot: Offered | None, *, owners: Collection[str] | None, token_only: bool
    ) -> WaitingView:
        """Why a job waits, or that it does not.

        Args:
            slot: what a whole pilot of the job's queue offers; None: the queue is unknown or offline.

        Raises:
            NotFoundError: no such job for this caller.
        """
        row = await self.job(panda_id, owners=owners)
        # Archived jobs are final: of them nothing else is asked.
        says = _of_status(row, self._silence) or _of_credential(row)
        if not says and slot is None:
            says = f"queue {row['queue']} is offline or not configured any more: submit again to another one"
        if not says and slot is not None:
            says = await self._of_matching(row, slot, token_only)
        return WaitingView(panda_id=panda_id, status=JobStatus(row["status"]), queue=row["queue"], why=says)

    async def job(self, panda_id: int, *, owners: Collection[str] | None) -> Any:
        """What is asked of; its ``queue`` says which slot counts. Raises as ``why``."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.JOB, panda_id)
            row = row or await connection.fetchrow(sql.ARCHIVED_JOB, panda_id)
            if row is None:
                raise await not_found(connection, "job", panda_id)
        if owners is not None and row["owner"] not in owners:
            raise NotFoundError(f"there is no job {panda_id} for this caller")
        return row

    async def _of_matching(self, row: Any, slot: Offered, token_only: bool) -> str:
        self._boards.changed()
        board = await self._boards.current(row["queue"])
        mine = board.heads.get(row["lane"])
        if mine is None:
            return "it is being given to a pilot just now"
        async with self._database.connection() as connection:
            pilots = await connection.fetchrow(sql.PILOTS, row["queue"])
            counts = {each["lane_id"]: each["waiting"] for each in await connection.fetch(counts_sql.LANE_COUNTS)}
            position = (row["activated_xid"], row["panda_id"])
            before = await connection.fetchval(sql.BEFORE_IN_LANE, row["lane"], *position, *mine.head)
        never = never_fits(mine, slot, None if token_only else pilots["dns"])
        held = ban_of(mine.lane, board.rules) or _capped(mine, board)
        if never or held:
            return str(never or held)
        if not pilots["seen"]:
            return f"no pilot of queue {row['queue']} asks for work; {pilots['coming']} are on their way there"
        return in_turn(mine, before, board, slot, counts)


def never_fits(mine: Candidate, slot: Offered, pilot_dns: Sequence[str] | None) -> Refusal | None:
    """Why no pilot of the queue takes it: by its size, or because none of them may retrieve the credential."""
    found = refusal(mine.lane, slot)
    if found is not None:
        return found
    if pilot_dns and mine.lane.retriever_dn not in pilot_dns:
        return Refusal(Lack.RETRIEVER, mine.lane.retriever_dn, tuple(pilot_dns))
    return None


def in_turn(mine: Candidate, before: int, board: QueueBoard, slot: Offered, counts: dict[int, int]) -> str:
    """It fits and waits for its turn: behind how many, and with which priority."""
    fitting = [each for each in board.heads.values() if refusal(each.lane, slot) is None]
    order = ranked(fitting, board.rules, board.usage)
    ahead = {each.lane.lane_id for each in order[: order.index(mine)]} - {mine.lane.lane_id}
    jobs = before + sum(counts.get(lane_id, 0) for lane_id in ahead)
    with_pilots = board.usage.owner_jobs.get(mine.lane.owner, 0)
    offset = board.rules.share("owner", mine.lane.owner).priority_offset
    priority = user_priority(mine.lane.shape.priority + offset, with_pilots, 0.0)
    return (
        f"it waits for its turn: {jobs} jobs stand before it at {mine.lane.queue}; {mine.lane.owner} has {with_pilots}"
        f" jobs with pilots, which makes its priority {priority}"
    )


def _capped(mine: Candidate, board: QueueBoard) -> Refusal | None:
    found = room(mine.lane, board.rules, board.usage, 1)
    return found if isinstance(found, Refusal) else None


def _of_status(row: Any, silence: Silence) -> str:
    status = JobStatus(row["status"])
    if status is JobStatus.ACTIVATED:
        return ""
    if row["pilot_id"] is not None:
        stop = ", which is to stop it" if row["command"] == "tobekilled" else ""
        silent = _suspected(silence, row["lease_left_s"])
        return f"it does not wait: it is {status}, with pilot {row['pilot_id']}{stop}{silent}"
    if status.is_final:
        reason = f": {row['change_reason']}" if row["change_reason"] else ""
        return f"it does not wait: it is {status}{reason}"
    return f"it is {status}, and not ready for pilots yet"


def _suspected(silence: Silence, left_s: float) -> str:
    """What is said of a pilot that should have spoken long ago; empty of others."""
    silent_s = silence.of(left_s)
    if silent_s is None:
        return ""
    when = f"{max(0.0, left_s):.0f} s from now"
    return f", which is suspected: it has said nothing for {silent_s:.0f} s, and the job is given to another one {when}"


def _of_credential(row: Any) -> str:
    number = row["credential_id"]
    if row["state"] != "staged":
        return f"credential {number} was {row['state']}: its owner must stage a fresh one and retry"
    if not row["lasts"]:
        return f"credential {number} ends before the job could: its owner must stage a fresh one and retry"
    if not row["consented"]:
        return f"its owner has not consented to credential {number} being used here, or no longer"
    return ""
