"""Pilots on a GRAM5 CE: one GRAM job for each pilot, and for everything else one small program at the CE.

GRAM takes one job a request, knows no tags and forgets a job at its end. So a batch is first put in place at the CE,
as on a submit host of a batch system: tag, PilotIDs, and for each copy a 0600 file with its secret. Jobs name a place
only. Whatever a crash interrupts, a repeat looks there and sends what is missing, and if a lost answer makes two jobs
for one copy, the second ends at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from airpanda.computing import remote
from airpanda.computing.batch import BatchElement, lines_of
from airpanda.computing.ces import BatchCE, GramCE
from airpanda.computing.dialects.gram import JOB, PROXY_MARK, Gram, start_script
from airpanda.computing.dialects.port import CEJob
from airpanda.computing.elements import (
    BUSY_RETRY_S,
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    Outcome,
    PilotBatch,
    PilotJobState,
    Submission,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.computing.gram_client import GramClient
from airpanda.computing.gram_rsl import relation
from airpanda.computing.queues import PandaQueue
from airpanda.computing.refusals import check_fresh, check_outlives, given
from airpanda.core.clock import utcnow
from airpanda.x509.credential import ProxyCredential

_SIDE_BY_SIDE = 8  # calls to one CE at a time
_COMMIT_S = "120"
_WORDS_S = 60.0  # how long GRAM is asked about single jobs
_RECORD_S = 30.0  # of a submission's time, kept to put contacts on record
_ONE_JOB_S = 60.0
_T = TypeVar("_T")
_R = TypeVar("_R")


class GramElement(BatchElement):
    """Pilots of one queue on one GRAM CE. A handle is ``gram_<index>@<tag>``: GRAM's contact is at that place.

    As on ARC, the caller sees to it that a tag is submitted by one process at a time.

    Args:
        queue: its ``[ce]`` is a ``GramCE``.
        wrapper: text of the POSIX shell script that becomes the pilot.
        credential: the robot's; GRAM delegates a proxy of it to every pilot.
        timeout_s: the longest one call may take.
    """

    def __init__(
        self,
        queue: PandaQueue,
        wrapper: str,
        credential: ProxyCredential,
        *,
        timeout_s: float = 120.0,
        clock: Callable[[], datetime] = utcnow,
    ) -> None:
        if not isinstance(queue.ce, GramCE):
            raise InvalidDescriptionError(f"the queue {queue.name} is not of a GRAM CE")
        ce = queue.ce
        self._gram, self._clock, self._dialect_of_places = GramClient(ce, credential, clock=clock), clock, Gram()
        place = BatchCE("gram", ce.directory, scratch=ce.scratch, max_pilots=ce.max_pilots)
        super().__init__(
            replace(queue, ce=place, more_ces={}), wrapper, self._gram, self._dialect_of_places, timeout_s=timeout_s / 2
        )
        self._limit_s = timeout_s  # of a whole call; a program has half of it
        self._gram_ce = ce
        self._proxy = "" if queue.pilot.proxy else PROXY_MARK
        self._seen = remote.Observation()
        self._contacts: dict[tuple[str, int], str] = {}

    def submit(self, batch: PilotBatch) -> Submission:
        """Put the batch in place in one call, then submit a job for each copy that has none.

        Raises:
            InvalidDescriptionError: too many, refused for good, or the tag is in use for other pilots. Nothing was
                submitted, as with the next three.
            CECredentialError: the robot is refused, or its credential ends before such a pilot would.
            ThrottledError: they would exceed ``max_pilots`` or a limit of the site.
            CEUnavailableError: a repeat is safe.
            SubmitUncertainError: not all are known to be submitted, be it that GRAM refused the others; a repeat is
                safe and adopts.
        """
        end = time.monotonic() + self._limit_s
        walltime = timedelta(seconds=self._queue.slot.walltime_s)
        check_outlives(self.name, self._gram.credential, self._clock(), walltime)
        submission = super().submit(batch)
        copies = sorted(range(len(batch.tokens)))
        if submission.adopted:
            copies = self._without_job(batch.tag, copies)
        self._start(batch.tag, copies, end, adopted=bool(submission.adopted))
        fresh = {pilot for index, pilot in enumerate(sorted(batch.tokens)) if index in copies}
        return replace(submission, adopted=submission.adopted - fresh)

    def cancel(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Mark the pilots, which end within seconds; a repeat has GRAM end them by force.

        GRAM is told at once of those that wait: it takes several seconds for each, eight at a time.
        """
        outcomes = super().cancel(handles)
        seen, wanted = self._seen, []
        for place in (_place_of(handle) for handle, outcome in outcomes.items() if outcome is Outcome.ACCEPTED):
            job = seen.jobs.get((JOB, place[1], place[0]))
            begun = job is not None and job.state is PilotJobState.RUNNING
            if place in self._contacts and (not begun or place in seen.cancelled):
                wanted.append(self._contacts[place])
        self._each(self._gram.cancel, wanted, time.monotonic() + self._limit_s)
        return outcomes

    def renew(self, credential: ProxyCredential) -> datetime:
        """Replace ``[pilot] proxy`` at the CE; where that is empty, delegate afresh to every pilot's job.

        GRAM puts the new proxy in the place of the old one; a pilot reads it when it needs it.
        """
        check_fresh(self.name, credential, self._clock())
        self._gram.use(credential)
        if not self._proxy:
            return super().renew(credential)
        answer = self._call("observe", ())
        contacts = list(self._dialect_of_places.parse_contacts(answer.other).values())
        done = self._each(self._gram.refresh, contacts, time.monotonic() + self._limit_s)
        missed = [contact for contact in contacts if not done.get(contact)]
        still = [c for c in missed if self._gram.state(c) not in (None, PilotJobState.DONE, PilotJobState.FAILED)]
        if still:
            raise CEUnavailableError(
                f"{self.name}: {len(still)} of {len(contacts)} pilots still have the old proxy; repeat"
            )
        return credential.not_after

    def close(self) -> None:
        self._gram.close()

    # --- submission -----------------------------------------------------------------------------------------

    def _without_job(self, tag: str, copies: Iterable[int]) -> list[int]:
        seen = self._places({tag})
        ended = {index for _, index in [*seen.exits, *seen.cancelled]}
        unsent = {index for (_, index, _), job in seen.jobs.items() if job.state is PilotJobState.SUBMITTED}
        return [index for index in copies if index in unsent - ended]

    def _start(self, tag: str, copies: Sequence[int], end: float, *, adopted: bool) -> None:
        """Submit these copies; the first alone, so that a refusal costs one call.

        Of a batch that was ``adopted`` the others may be at GRAM, so a refusal is not one of all: what was refused
        stays in place for the next repeat.
        """
        contacts: dict[int, str] = {}
        failure: ComputingElementError | None = None
        try:
            if copies:
                contacts[copies[0]] = self._submit_one(tag, copies[0], end)
            with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
                jobs = {index: pool.submit(self._submit_one, tag, index, end) for index in copies[1:]}
                for index, job in jobs.items():
                    try:
                        contacts[index] = job.result()
                    except ComputingElementError as error:
                        failure = failure or error
        except ComputingElementError as error:
            failure = error
        if contacts:
            self._record(tag, contacts)
        elif failure is not None and not adopted and not isinstance(failure, SubmitUncertainError):
            self._call("purge", (), lines_of(f"{tag}/{index}" for index in copies))
        if failure is not None:
            took = f"{self.name} took {len(contacts)} of {len(copies)} pilots"
            raise _partial(failure, took, adopted or bool(contacts))

    def _submit_one(self, tag: str, index: int, end: float) -> str:
        left = end - _RECORD_S - time.monotonic()
        if left <= 0:
            raise SubmitUncertainError(f"{self.name} is too slow for all of them at once; a repeat sends the others")
        return self._gram.submit(self._rsl(tag, index), timeout_s=min(_ONE_JOB_S, left))

    def _rsl(self, tag: str, index: int) -> str:
        """One pilot's job. It holds no secret: GRAM keeps it in files and shows it.

        No ``directory``: the scripts of GRAM's batch systems write it without quotes. The pilot finds its own.
        """
        slot, ce, place = self._queue.slot, self._gram_ce, f"{self._ce.directory}/{tag}"
        return "".join(
            (
                "&",
                *ce.rsl,
                relation("executable", "/bin/sh"),
                relation("arguments", f"{place}/job.sh", str(index)),
                relation("count", str(slot.cores)),
                relation("job_type", "single"),
                relation("max_wall_time", str(math.ceil(slot.walltime_s / 60))),
                relation("max_memory", str(slot.memory_mib)),
                relation("queue", ce.queue) if ce.queue else "",
                relation("project", ce.project) if ce.project else "",
                relation("two_phase", _COMMIT_S),
            )
        )

    def _record(self, tag: str, contacts: Mapping[int, str]) -> None:
        lines = lines_of(f"{tag}/{index} {contact}" for index, contact in contacts.items())
        try:
            self._call("record", (), lines)
        except ComputingElementError as error:
            text = f"{self.name} took {len(contacts)} pilots, and their contacts are not on record: {error}"
            raise SubmitUncertainError(text) from error

    def _job_script(self, tag: str) -> str:
        pilot = self._queue.pilot
        return start_script(self._ce.directory, tag, code=pilot.code, python=pilot.python)

    # --- states ---------------------------------------------------------------------------------------------

    def _observe(self, tags: set[str]) -> remote.Observation:
        """Files first, then GRAM's word on each job; what GRAM says is over is looked up once more in the files."""
        seen = self._places(tags)
        asked = list(self._contacts.values())
        words = self._each(self._gram.state, asked, time.monotonic() + _WORDS_S)
        said: dict[tuple[str, int | None], PilotJobState] = {
            place: word for place, contact in self._contacts.items() if (word := words.get(contact)) is not None
        }
        if any(word.is_final for word in said.values()):
            seen = self._places(tags)
        seen.jobs = {key: _judged(job, said.get((job.tag, job.index))) for key, job in seen.jobs.items()}
        self._seen = seen
        return seen

    def _places(self, tags: set[str]) -> remote.Observation:
        answer = self._call("observe", (), lines_of(sorted(tags)))
        found = self._dialect_of_places.parse_contacts(answer.other)
        self._contacts = {place: contact for place, contact in found.items() if place[0] in tags}
        return remote.parse_observation(self._dialect, answer.other, tags)

    def _each(self, call: Callable[[_T], _R], items: Sequence[_T], end: float) -> dict[_T, _R]:
        """The calls' answers, side by side; without those that failed or for which there was no time."""

        def one(item: _T) -> tuple[_T, _R] | None:
            if time.monotonic() > end:
                return None
            try:
                return item, call(item)
            except ComputingElementError:
                return None

        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            return dict(filter(None, pool.map(one, items)))


def _judged(job: CEJob, word: PilotJobState | None) -> CEJob:
    """What files and GRAM together say of a copy that left no exit code. A pilot that has begun is not waiting."""
    if word is None or (job.state is word):
        return job
    if word.is_final:
        reason = f"GRAM says that the job is over, and the pilot left no exit code; {job.reason}"
        return replace(job, state=PilotJobState.FAILED, reason=reason)
    if job.state is PilotJobState.RUNNING and word not in (PilotJobState.HELD, PilotJobState.COMPLETING):
        return job
    return replace(job, state=word, reason=f"GRAM says {word.value}; {job.reason}")


def _place_of(handle: Handle) -> tuple[str, int]:
    job, _, tag = handle.partition("@")
    return tag, int(job.rpartition("_")[2])


def _partial(error: ComputingElementError, took: str, some: bool) -> ComputingElementError:
    """The error of a submission that stopped on the way."""
    text = f"{took}; a repeat adopts those and sends the others: {error}"
    if some or isinstance(error, SubmitUncertainError):
        return SubmitUncertainError(text)  # any other would have the pilots that GRAM took ended as never submitted
    if isinstance(error, ThrottledError):
        return ThrottledError(text, retry_after_s=error.retry_after_s or BUSY_RETRY_S)
    if isinstance(error, (InvalidDescriptionError, CECredentialError)):
        return type(error)(text)
    return CEUnavailableError(text)


def make_gram_element(queue: PandaQueue, wrapper: str, credential: ProxyCredential | None) -> GramElement:
    """The element of a queue whose ``[ce]`` is a GRAM CE.

    Raises:
        InvalidDescriptionError: it is of another kind.
        CECredentialError: there is no credential.
    """
    return GramElement(queue, wrapper, given(queue, credential, "the robot's credential"))
