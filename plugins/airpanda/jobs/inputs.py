"""Inputs that are outputs of other jobs: asked for at submission, where a person still reads the answer.

The pilot's download asks again (``FileStore.input_for``): what is taken away later fails the job there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airpanda.core.errors import GoneError, NotAuthorisedError, RequestError
from airpanda.db.sql import files as sql
from airpanda.jobs.files import may_read
from airpanda.jobs.removed import not_found
from airpanda.messages import JobSpec

_STORED = "panda:"


async def demand_inputs(connection: Any, jobs: Iterable[JobSpec], credential: Any) -> None:
    """Whether every output of another job that these jobs name is there for this credential's owner.

    Raises:
        RequestError: one does not exist; names it and the first job that wants it.
        NotAuthorisedError: one is another owner's and not shared with this one's VO.
    """
    first: dict[str, str] = {}
    for job in jobs:
        for each in job.inputs:
            if each.source.startswith(_STORED):
                first.setdefault(each.source, job.job_name)
    if not first:
        return
    named = [source.removeprefix(_STORED).partition("/") for source in first]
    rows = await connection.fetch(sql.OUTPUTS, [int(number) for number, _, _ in named], [lfn for _, _, lfn in named])
    for (source, job_name), row in zip(first.items(), rows, strict=True):
        if row["lfn"] is None:
            number = source.removeprefix(_STORED).partition("/")[0]
            gone = await not_found(connection, "job", int(number))
            if isinstance(gone, GoneError):
                raise RequestError(f"job {job_name}: its input {source} does not exist any more: {gone}")
            raise RequestError(
                f"job {job_name}: its input {source} does not exist, since job {number} has not finished with such an"
                " output: name one that has"
            )
        if not may_read(row, owner_dn=credential["owner_dn"], fqans=credential["fqans"]):
            raise NotAuthorisedError(
                f"job {job_name}: its input {source} belongs to another owner and is not shared with"
                f" {credential['owner_dn']}: its owner must submit it with access vo, to a VO of both"
            )
