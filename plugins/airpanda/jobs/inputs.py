"""Inputs that are outputs of other jobs: asked for at submission, where a person still reads the answer.

The pilot's download asks again (``FileStore.input_for``): what is taken away later fails the job there.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from airpanda.core.errors import GoneError, RequestError
from airpanda.db.sql import files as sql
from airpanda.jobs.files import may_read
from airpanda.jobs.removed import not_found
from airpanda.jobs.sandboxes import SANDBOX
from airpanda.messages import JobSpec

_STORED = "panda:"
AT_ONCE = 10_000
"""Asked for in one statement: a submission may name a hundred times as many, and a statement has its time."""


async def demand_inputs(connection: Any, jobs: Iterable[JobSpec], credential: Any) -> None:
    """Whether every output of another job that these jobs name is there for this credential's owner.

    What another owner has and does not share is as absent as what nobody has: who may not read it learns nothing.

    Raises:
        RequestError: one is not there for this owner; names it and the first job that wants it.
    """
    first: dict[str, str] = {}
    for job in jobs:
        for each in job.inputs:
            if each.source.startswith(_STORED) and not each.source.startswith(SANDBOX):
                first.setdefault(each.source, job.job_name)
    if not first:
        return
    sources = iter(first.items())
    while some := list(islice(sources, AT_ONCE)):
        named = [_named(source) for source, _ in some]
        rows = await connection.fetch(sql.OUTPUTS, [number for number, _ in named], [lfn for _, lfn in named])
        for (source, job_name), row in zip(some, rows, strict=True):
            if row["lfn"] is None or not may_read(row, owner_dn=credential["owner_dn"], fqans=credential["fqans"]):
                raise await _absent(connection, source, job_name, credential["owner_dn"])


def _named(source: str) -> tuple[int, str]:
    number, _, lfn = source.removeprefix(_STORED).partition("/")
    return int(number), lfn


async def _absent(connection: Any, source: str, job_name: str, owner_dn: str) -> RequestError:
    number, _ = _named(source)
    gone = await not_found(connection, "job", number)
    if isinstance(gone, GoneError):
        return RequestError(f"job {job_name}: its input {source} does not exist any more: {gone}")
    return RequestError(
        f"job {job_name}: its input {source} is not there for {owner_dn}: job {number} has not finished with such an"
        " output, or is another owner's who does not share it; name one that has, or have its owner submit it with"
        " access vo, to a VO of both"
    )
