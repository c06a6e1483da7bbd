"""What goes where: the transfers of a job, as values. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional

from airpanda.pilot import errors
from airpanda.pilot.errors import JobFault
from airpanda.pilot.wire import Job

SCHEMES = frozenset({"file", "https", "davs", "root"})
_STORE = "panda:"


@dataclass(frozen=True)
class Transfer:
    """One file between the sandbox, where it is ``lfn``, and ``url``; ``direction`` is ``in`` or ``out``.

    ``temporary`` is its name at the receiving end while it is not whole: the same in every try of this attempt and in
    no other attempt, so that a later try clears away what an earlier one has left. ``size``, ``adler32`` and
    ``sha256`` are what was declared.
    """

    lfn: str
    direction: str
    url: str
    temporary: str
    size: Optional[int] = None
    adler32: Optional[str] = None
    sha256: Optional[str] = None

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    @property
    def shown(self) -> str:
        """For people: a query may hold somebody's signature."""
        return self.url.partition("?")[0]

    def to_wire(self) -> dict[str, Any]:
        return dict(vars(self))


def inputs_elsewhere(job: Job) -> tuple[Transfer, ...]:
    """The inputs of a job that the dispatcher does not keep."""
    return tuple(
        Transfer(
            each.lfn,
            "in",
            each.source,
            f".airpanda-{job.panda_id}-{job.attempt_nr}-{number}.part",
            each.size,
            each.adler32,
            each.sha256,
        )
        for number, each in enumerate(job.spec.inputs)
        if not each.source.startswith(_STORE)
    )


def outputs_elsewhere(job: Job) -> tuple[Transfer, ...]:
    """The outputs of a job that the dispatcher does not keep. A destination that ends in ``/`` is a folder."""
    return tuple(
        Transfer(
            each.lfn,
            "out",
            each.destination + each.lfn if each.destination.endswith("/") else each.destination,
            f".airpanda-{job.panda_id}-{job.attempt_nr}-{number}.part",
        )
        for number, each in enumerate(job.spec.outputs)
        if each.destination is not None
    )


def inputs_here(job: Job) -> list[str]:
    """The names of the inputs that the dispatcher keeps."""
    return [each.lfn for each in job.spec.inputs if each.source.startswith(_STORE)]


def outputs_here(job: Job) -> list[str]:
    """The names of the outputs that the dispatcher keeps."""
    return [each.lfn for each in job.spec.outputs if each.destination is None]


def check(job: Job, *, switches: bool) -> None:
    """Whether this pilot can move the job's files at all; asked before anything is fetched.

    Without a switch there is no account of the owner's, and the pilot's own is not lent to open files of the node.

    Raises:
        JobFault: it cannot.
    """
    transfers = (*inputs_elsewhere(job), *outputs_elsewhere(job))
    for each in transfers:
        if each.scheme not in SCHEMES:
            raise JobFault(errors.NO_PROTOCOL, f"{each.lfn}: {each.shown}")
        if each.scheme == "file" and not switches:
            raise JobFault(errors.NO_ACCOUNT, f"{each.lfn}: {each.shown}")
    twice = _first_double([*job.spec.scripts, *(each.lfn for each in job.spec.inputs)])
    if twice is not None:
        raise JobFault(errors.INPUT_REFUSED, f"{twice} is put into the sandbox twice")
    twice = _first_double(each.url for each in transfers if each.direction == "out")
    if twice is not None:
        raise JobFault(errors.OUTPUT_REFUSED, f"two outputs have one destination, {twice.partition('?')[0]}")


def _first_double(names: Iterable[str]) -> Optional[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
