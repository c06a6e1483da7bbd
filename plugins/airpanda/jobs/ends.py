"""The end of an attempt, within the retry rules: as reported, by the watchdog, or of one that was never handed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from airpanda.db.sql import jobs as sql
from airpanda.db.sql import retry as retry_sql
from airpanda.jobs.lanes import lane_with
from airpanda.jobs.retry import Needs, Verdict, bounded, changed, covered, explained, judge, rule_of
from airpanda.jobs.rules import Ends, Held, after_silence
from airpanda.messages import JobError, JobStatus

AVOID_NODE = timedelta(minutes=10)


class AttemptEnds:
    """Ends attempts within a transaction of the caller's, which has locked the job.

    ``most``: what a job of this queue may ask for; None: nobody knows, and nothing is asked for beyond what was.
    """

    def __init__(self, most: Callable[[str], Needs | None] = lambda _queue: None) -> None:
        self._most = most

    async def take(self, connection: Any, row: Any, error: JobError, actor: str = "watchdog") -> None:
        """End the attempt of a pilot that has not said that it has ended."""
        decision = after_silence(held(row), error)
        await connection.execute(
            sql.CLOSE_SILENT_ATTEMPT,
            row["panda_id"],
            row["attempt_nr"],
            decision.attempt.value,
            [error.model_dump(mode="json")],
        )
        await self.end(connection, row, decision, actor, [error])

    async def end(self, connection: Any, row: Any, decision: Ends, actor: str, errors: Sequence[JobError]) -> None:
        """End the attempt as decided, within the retry rules."""
        needs, lane, avoid = Needs(row["memory_mib"], row["walltime_s"]), None, None
        if decision.attempt is JobStatus.FAILED:
            verdict = await self._verdict(connection, row, errors)
            decision = bounded(decision, verdict, charged_before=row["charged"])
            before = needs
            if decision.is_next_attempt:
                needs = changed(needs, verdict, most=self._most(row["queue"]))
            if needs.walltime_s > before.walltime_s:
                left_s = await connection.fetchval(retry_sql.CREDENTIAL_LEFT_S, row["credential_id"])
                verdict, needs = covered(verdict, before, needs, left_s=left_s)
            why = explained(
                decision, verdict, before, needs, charged_before=row["charged"], max_attempt=row["max_attempt"]
            )
            await connection.execute(retry_sql.EXPLAIN_END, row["panda_id"], row["attempt_nr"], why)
            if decision.is_next_attempt and needs != before:
                lane = await lane_with(connection, abs(row["lane"]), needs)
            if decision.is_next_attempt and verdict.is_elsewhere:
                avoid = AVOID_NODE
        await connection.execute(
            sql.END_ATTEMPT,
            row["panda_id"],
            decision.job.value,
            int(decision.is_next_attempt),
            decision.charged,
            decision.returned,
            actor,
            decision.reason,
            needs.memory_mib,
            needs.walltime_s,
            lane,
            avoid,
        )

    async def _verdict(self, connection: Any, row: Any, errors: Sequence[JobError]) -> Verdict:
        rules = [rule_of(each) for each in await connection.fetch(retry_sql.IN_FORCE)] if errors else []
        return judge(rules, errors, queue=row["queue"], now=await connection.fetchval("SELECT now()"))


def held(row: Any) -> Held:
    """What decides about an attempt, of a job's row."""
    return Held(
        status=JobStatus(row["status"]),
        max_attempt=row["max_attempt"],
        charged=row["charged"],
        returned=row["returned"],
        told_to_stop=row["command"] == "tobekilled",
    )
