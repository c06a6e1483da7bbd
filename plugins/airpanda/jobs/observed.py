"""What reports bring beside the status: measurements, answers to debug requests, outputs stored elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from airpanda.core.errors import ConflictError, NotFoundError, RequestError
from airpanda.db.pool import Database
from airpanda.db.sql import observed as sql
from airpanda.db.sql import views as views_sql
from airpanda.jobs.removed import not_found
from airpanda.messages import DebugAsked, DebugWhat, JobReport, JobSpec, Sample, StoredFile

MAX_SAMPLES = 500
_THINNED = MAX_SAMPLES // 2 - 1


async def note(connection: Any, report: JobReport) -> None:
    """Keep what the report of a lease holder brings. A repeat changes nothing.

    Raises:
        RequestError: an output is said to lie where the job did not want it.
    """
    key = (report.job_id, report.attempt_nr)
    if report.samples:
        await _add_samples(connection, key, report.samples)
    if report.debug_output:
        await connection.execute(sql.ANSWER, *key, report.debug_output)
    if report.stored:
        await _note_stored(connection, key, report.stored)


async def question(connection: Any, panda_id: int, attempt_nr: int) -> DebugWhat | None:
    """What the attempt's pilot is to show, if anything."""
    what: DebugWhat | None = await connection.fetchval(sql.ASKED, panda_id, attempt_nr)
    return what


async def missing(connection: Any, panda_id: int, attempt_nr: int, *, n_outputs: int) -> list[str]:
    """Declared outputs that are on no record for this attempt, whether they were to lie here or elsewhere."""
    key = (panda_id, attempt_nr)
    if not n_outputs or await connection.fetchval(sql.STORED, *key) >= n_outputs:
        return []
    spec = JobSpec.model_validate_json(await connection.fetchval(sql.SPEC, panda_id))
    there = {row["lfn"] for row in await connection.fetch(sql.STORED_NAMES, *key)}
    return sorted({output.lfn for output in spec.outputs} - there)


class Observer:
    """For people: what is seen of a job. ``owners`` bounds what a caller sees; None is everything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask(self, panda_id: int, what: DebugWhat, *, owners: Collection[str] | None, actor: str) -> DebugAsked:
        """Have the pilot show something at its next heartbeat. A repeat changes nothing.

        Raises:
            NotFoundError: no such job for this caller.
            ConflictError: the job is not with a pilot.
        """
        async with self._database.transaction() as connection:
            await _demand(connection, panda_id, owners)
            attempt_nr = await connection.fetchval(sql.RUNNING_ATTEMPT, panda_id)
            if attempt_nr is None:
                raise ConflictError(f"job {panda_id} is not with a pilot that could show something")
            await connection.execute(sql.ASK, panda_id, attempt_nr, what, actor)
        return DebugAsked(panda_id=panda_id, attempt_nr=attempt_nr, what=what)

    async def answer(self, panda_id: int, *, owners: Collection[str] | None) -> str:
        """The answer to the last question.

        Raises:
            NotFoundError: no such job for this caller, nothing was asked, or it is not answered yet.
        """
        async with self._database.connection() as connection:
            await _demand(connection, panda_id, owners)
            row = await connection.fetchrow(sql.LAST_DEBUG, panda_id)
        if row is None:
            raise NotFoundError(f"nobody has asked the pilot of job {panda_id} to show anything")
        if row["answered_at"] is None:
            raise NotFoundError(f"the pilot of job {panda_id} has not answered {row['what']!r} yet: ask again later")
        return str(row["output"])

    async def samples(self, panda_id: int, *, owners: Collection[str] | None) -> list[Sample]:
        """Measurements of the latest attempt, in the order of time; evenly thinned, at most ``MAX_SAMPLES``.

        Raises:
            NotFoundError: no such job for this caller.
        """
        async with self._database.connection() as connection:
            await _demand(connection, panda_id, owners)
            return [Sample(**dict(row)) for row in await connection.fetch(sql.SAMPLES, panda_id)]


async def _demand(connection: Any, panda_id: int, owners: Collection[str] | None) -> None:
    job = await connection.fetchrow(views_sql.JOB_OWNER, panda_id)
    if job is None:
        raise await not_found(connection, "job", panda_id)
    if owners is not None and job["owner"] not in owners:
        raise NotFoundError(f"there is no job {panda_id} for this caller")


async def _add_samples(connection: Any, key: tuple[int, int], samples: Sequence[Sample]) -> None:
    columns = [[getattr(sample, name) for sample in samples] for name in Sample.model_fields]
    await connection.execute(sql.ADD_SAMPLES, *key, *columns)
    if await connection.fetchval(sql.COUNT_SAMPLES, *key) > MAX_SAMPLES:
        await connection.execute(sql.THIN_SAMPLES, *key, _THINNED)


async def _note_stored(connection: Any, key: tuple[int, int], stored: Sequence[StoredFile]) -> None:
    spec = JobSpec.model_validate_json(await connection.fetchval(sql.SPEC, key[0]))
    outputs = {output.lfn: output for output in spec.outputs}
    for file in stored:
        output = outputs.get(file.lfn)
        if output is None or output.destination is None or file.url not in _places(output.destination, file.lfn):
            raise RequestError(f"job {key[0]} wants no output {file.lfn!r} at {file.url}")
        digest = bytes.fromhex(file.sha256)
        await connection.execute(
            sql.PUT_ELSEWHERE, *key, file.lfn, file.size, digest, file.adler32, output.access, file.url
        )


def _places(destination: str, lfn: str) -> tuple[str, ...]:
    """Where an output with this destination may lie: there, or below it where it is a folder."""
    return (destination, destination + lfn) if destination.endswith("/") else (destination,)
