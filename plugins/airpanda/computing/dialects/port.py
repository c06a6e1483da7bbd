"""The port that a batch system's dialect keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from airpanda.computing.elements import (
    BUSY_RETRY_S,
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    Limits,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
)

ErrorTable = Sequence[tuple[re.Pattern[str], type[ComputingElementError]]]


@dataclass(frozen=True)
class BatchSpec:
    """What one submission asks of the batch system: ``copies`` jobs with the indices 0 to ``copies`` - 1."""

    tag: str
    copies: int
    cores: int
    memory_mib: int
    walltime_s: int
    partition: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class CEJob:
    """One line of the batch system's list: the copy ``index`` of its job ``job``, which has the name ``tag``.

    Without an index it speaks of all copies that have no line of their own.
    """

    job: str
    index: int | None
    tag: str
    state: PilotJobState
    reason: str = ""


class Dialect(Protocol):
    """One batch system.

    ``functions`` is POSIX shell that defines, with a non-zero status for every failure:

    - ``list_tag TAG``: prints the ids of this account's jobs with exactly this name, one a line, also ended ones;
    - ``active_tags``: prints the name of each of the account's copies that has not ended;
    - ``list_jobs``: prints what ``parse_jobs`` reads, of all of the account's jobs;
    - ``enqueue ARGUMENT...``: submits ``./job.sh`` of the current directory, prints the new job's id;
    - ``dequeue ARGUMENT...``: asks for the end of jobs.

    ``index`` and ``job_id`` are the shell words with which ``job.sh`` learns which copy of which job it is.
    """

    kind: str
    limits: Limits
    functions: str
    index: str
    job_id: str
    errors: ErrorTable

    def submit_arguments(self, spec: BatchSpec) -> tuple[str, ...]:
        """The arguments of ``enqueue``."""

    def cancel_arguments(self, jobs: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """The arguments of ``dequeue`` for these copies by job."""

    def parse_jobs(self, text: str) -> list[CEJob]:
        """The jobs in what ``list_jobs`` printed. Lines of another form, such as warnings, say nothing."""


def to_error(name: str, said: str, errors: ErrorTable) -> ComputingElementError:
    """The error that a batch system's message means; what no table knows may be over the next time."""
    words = " ".join(said.split())[-600:] or "nothing"
    kind = next((kind for pattern, kind in errors if pattern.search(said)), CEUnavailableError)
    if issubclass(kind, ThrottledError):
        return ThrottledError(f"{name} asks for patience: {words}", retry_after_s=BUSY_RETRY_S)
    if issubclass(kind, (InvalidDescriptionError, CECredentialError)):
        return kind(f"{name} will not take this; correct the queue file or the account: {words}")
    if issubclass(kind, SubmitUncertainError):
        return SubmitUncertainError(f"{name} did not say whether it took the pilots: {words}")
    return CEUnavailableError(f"{name} cannot do this now: {words}")


def ranges(indices: Sequence[int]) -> str:
    """``0-3,7`` for 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for index in sorted(set(indices)):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
