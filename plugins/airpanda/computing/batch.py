"""Pilots on a batch system: any transport, any dialect. All state is in the queue and on the submit host."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from airpanda.computing import remote
from airpanda.computing.ces import BatchCE
from airpanda.computing.configuration import pilot_json
from airpanda.computing.dialects.gridengine import GridEngine
from airpanda.computing.dialects.htcondor import HTCondor
from airpanda.computing.dialects.pbs import PBS
from airpanda.computing.dialects.port import BatchSpec, Dialect, to_error
from airpanda.computing.dialects.slurm import Slurm
from airpanda.computing.elements import (
    BUSY_RETRY_S,
    CEUnavailableError,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    Load,
    NotFoundAtCEError,
    Outcome,
    PilotBatch,
    PilotJobState,
    Status,
    Submission,
    SubmitUncertainError,
    ThrottledError,
    outcome_of,
)
from airpanda.computing.queues import PandaQueue
from airpanda.computing.refusals import check_handles, check_size, given, lost, parsed
from airpanda.computing.ssh import SshLogin, SshTransport
from airpanda.computing.transports import AnswerLostError, LocalTransport, Transport

if TYPE_CHECKING:
    from airpanda.x509.credential import ProxyCredential

DIALECTS: Mapping[str, Callable[[], Dialect]] = {
    "slurm": Slurm,
    "gridengine": GridEngine,
    "htcondor": HTCondor,
    "pbs": PBS,
}
_HANDLE = re.compile(r"([A-Za-z0-9.\[\]-]{1,100})_([0-9]{1,6})@([A-Za-z0-9_-]{1,64})")
_ENDS = (PilotJobState.TIMEOUT, PilotJobState.PREEMPTED, PilotJobState.CANCELLED)


@dataclass(frozen=True)
class _Pilot:
    """What a handle names: copy ``index`` of the batch system's ``job``, and its place on the submit host."""

    job: str
    index: int
    tag: str

    @property
    def handle(self) -> Handle:
        return Handle(f"{self.job}_{self.index}@{self.tag}")

    @property
    def place(self) -> str:
        return f"{self.tag}/{self.index}"


class BatchElement:
    """Pilots of one queue on one batch system. A handle is ``<job>_<index>@<tag>``.

    Args:
        queue: its ``[ce]`` is a ``BatchCE``.
        wrapper: text of the POSIX shell script that becomes the pilot.
        timeout_s: the longest one call may take.
    """

    _proxy = ""  # in the place of [pilot] proxy

    def __init__(
        self, queue: PandaQueue, wrapper: str, transport: Transport, dialect: Dialect, *, timeout_s: float = 120.0
    ) -> None:
        if not isinstance(queue.ce, BatchCE):
            raise InvalidDescriptionError(f"the queue {queue.name} is not of a batch system")
        self.name = f"{dialect.kind}:{queue.name}"
        self.limits = dialect.limits
        self._queue, self._ce, self._wrapper = queue, queue.ce, wrapper
        self._transport, self._dialect = transport, dialect
        self._timeout_s = timeout_s

    def submit(self, batch: PilotBatch) -> Submission:
        """Submit the batch as one array, unless its tag is in the queue or on record there.

        Raises:
            InvalidDescriptionError: too many, refused for good, or the tag is in use for other pilots.
            CECredentialError: the account may not submit, or the login fails.
            ThrottledError: they would exceed ``max_pilots`` or a limit of the site; nothing was submitted.
            CEUnavailableError: nothing was submitted; a repeat is safe.
            SubmitUncertainError: the request went out and no whole answer came; a repeat is safe and adopts.
        """
        check_size(batch, self.limits)
        pilot_ids = sorted(batch.tokens)
        identity = remote.identity(pilot_ids)
        answer = self._call("submit", self._submit_arguments(batch, identity), self._pack(batch, identity))
        pilots = [_Pilot(answer.text, index, batch.tag) for index in range(len(pilot_ids))]
        handles = {pilot_id: pilot.handle for pilot_id, pilot in zip(pilot_ids, pilots, strict=True)}
        _parse(handles.values())  # an id of another form would be lost on the way back
        return Submission(batch.tag, handles, frozenset(pilot_ids) if answer.word == "adopted" else frozenset())

    def status(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        check_handles(handles, self.limits)
        pilots = _parse(handles)
        seen = self._observe({pilot.tag for pilot in pilots})
        return {pilot.handle: _status(pilot, seen) for pilot in pilots}

    def find(self, tag: str) -> Mapping[Handle, Status]:
        seen = self._observe({tag})
        found = {_Pilot(job.job, job.index, tag) for job in seen.jobs.values() if job.index is not None}
        if tag in seen.job_of:
            found |= {_Pilot(seen.job_of[tag], index, tag) for index in range(seen.copies_of.get(tag, 0))}
        ordered = sorted(found, key=lambda pilot: (pilot.job, pilot.index))
        return {pilot.handle: _status(pilot, seen) for pilot in ordered}

    def cancel(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Ask the batch system to end the pilots; it ends by force what does not end in its own grace time."""
        outcomes = {handle: outcome_of(status) for handle, status in self.status(handles).items()}
        wanted = _parse(handle for handle, outcome in outcomes.items() if outcome is Outcome.ACCEPTED)
        if wanted:
            jobs: dict[str, list[int]] = {}
            for pilot in wanted:
                jobs.setdefault(pilot.job, []).append(pilot.index)
            self._call("cancel", self._dialect.cancel_arguments(jobs), lines_of(pilot.place for pilot in wanted))
        return outcomes

    def purge(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Remove what pilots left that ended, or that the batch system does not know."""
        running = {handle for handle, status in self.status(handles).items() if outcome_of(status) is Outcome.ACCEPTED}
        ended = [pilot for pilot in _parse(handles) if pilot.handle not in running]
        gone = set[str]()
        if ended:
            answer = self._call("purge", (), lines_of(pilot.place for pilot in ended))
            gone = {place for word, place in answer.lines if word == "gone"}
        outcomes = {p.handle: Outcome.ACCEPTED if p.place in gone else Outcome.NOT_FOUND for p in ended}
        return outcomes | dict.fromkeys(running, Outcome.STILL_RUNNING)

    def fetch(self, handle: Handle, *, tail_bytes: int = 65536) -> bytes:
        (pilot,) = _parse([handle])
        answer = self._call("fetch", (pilot.place, str(tail_bytes)))
        if answer.word == "missing":
            raise NotFoundAtCEError(f"{self.name} has no log of the pilot job {handle!r}")
        return base64.b64decode(answer.text)

    def tagged(self, prefix: str) -> Mapping[str, Sequence[Handle]]:
        found: dict[str, list[Handle]] = {}
        for job in self._dialect.parse_jobs(self._call("observe", ()).other):
            if job.tag.startswith(prefix) and job.index is not None and not job.state.is_final:
                found.setdefault(job.tag, []).append(_Pilot(job.job, job.index, job.tag).handle)
        return found

    def renew(self, credential: ProxyCredential) -> datetime:
        """Replace ``[pilot] proxy`` on the submit host: worker nodes share it, and pilots read it when they need it."""
        pem = credential.to_pem().reveal()
        self._call("renew", (self._queue.pilot.proxy, str(len(pem))), pem)
        return credential.not_after

    def load(self) -> Load:
        """The account's array tasks in the queue, whoever submitted them; see ``ReportsLoad``."""
        jobs = self._dialect.parse_jobs(self._call("observe", ()).other)
        return Load.of(job.state for job in jobs if job.index is not None)

    def close(self) -> None:
        self._transport.close()

    # --- one remote program ---------------------------------------------------------------------------------

    def _submit_arguments(self, batch: PilotBatch, identity: str) -> tuple[str, ...]:
        slot, ce = self._queue.slot, self._ce
        copies = len(batch.tokens)
        spec = BatchSpec(
            tag=batch.tag,
            copies=copies,
            cores=slot.cores,
            memory_mib=slot.memory_mib,
            walltime_s=slot.walltime_s,
            partition=ce.partition,
            options=ce.options,
        )
        return (batch.tag, identity, str(copies), str(ce.max_pilots), *self._dialect.submit_arguments(spec))

    def _pack(self, batch: PilotBatch, identity: str) -> bytes:
        ce, tag = self._ce, batch.tag
        texts = []
        for index, pilot_id in enumerate(sorted(batch.tokens)):
            scratch = f"{ce.scratch}/{tag}-{index}" if ce.scratch else ""
            token = batch.tokens[pilot_id]
            texts.append(pilot_json(self._queue, tag, pilot_id, token, scratch=scratch, proxy=self._proxy))
        files = {"job.sh": self._job_script(tag), "wrapper.sh": self._wrapper, "copies": identity + "\n"}
        return remote.pack(files, texts)

    def _job_script(self, tag: str) -> str:
        pilot = self._queue.pilot
        return remote.job_script(self._dialect, self._ce.directory, tag, code=pilot.code, python=pilot.python)

    def _observe(self, tags: set[str]) -> remote.Observation:
        answer = self._call("observe", (), lines_of(sorted(tags)))
        return remote.parse_observation(self._dialect, answer.other, tags)

    def _call(self, operation: str, arguments: Sequence[str], data: bytes = b"") -> remote.Answer:
        submitting = operation == "submit"
        argv, stdin = remote.command(self._dialect, operation, (self._ce.directory, *arguments), data)
        try:
            done = self._transport.run(argv, stdin, timeout_s=self._timeout_s)
        except AnswerLostError as error:
            raise lost(submitting, f"{self.name}: {error}") from error
        said = done.stderr.decode("utf-8", "replace")
        answer = remote.parse_answer(done.stdout)
        if answer is None:
            words = " ".join(said.split())[-500:] or "nothing"
            text = f"{self.name} ended with code {done.exit_code} and no whole answer; it said: {words}"
            raise lost(submitting, text)
        if answer.word in ("invalid", "throttled", "unavailable", "refused"):
            raise self._error(answer, said, submitting=submitting)
        return answer

    def _error(self, answer: remote.Answer, said: str, *, submitting: bool) -> ComputingElementError:
        text = f"{self.name}: {answer.text}"
        if answer.word == "invalid":
            return InvalidDescriptionError(text)
        if answer.word == "throttled":
            return ThrottledError(text, retry_after_s=BUSY_RETRY_S)
        if answer.word == "unavailable":
            return CEUnavailableError(f"{text}: {' '.join(said.split())[-300:]}")
        error = to_error(self.name, said, self._dialect.errors)
        return error if submitting or not isinstance(error, SubmitUncertainError) else CEUnavailableError(str(error))


def _parse(handles: Iterable[Handle]) -> list[_Pilot]:
    return [_Pilot(match[1], int(match[2]), match[3]) for match in parsed(handles, _HANDLE, "a batch system")]


def lines_of(words: Iterable[str]) -> bytes:
    """The data of a remote program that reads one word or place a line."""
    return "".join(f"{word}\n" for word in words).encode()


def _status(pilot: _Pilot, seen: remote.Observation) -> Status:
    """The pilot's own exit code outranks the queue, which forgets; a missing job is unknown, never done."""
    job = seen.jobs.get((pilot.job, pilot.index, pilot.tag)) or seen.jobs.get((pilot.job, None, pilot.tag))
    ours = seen.job_of.get(pilot.tag, pilot.job) == pilot.job
    code = seen.exits.get((pilot.tag, pilot.index)) if ours else None
    asked = ours and (pilot.tag, pilot.index) in seen.cancelled
    if code == 0:
        return Status(PilotJobState.DONE, 0)
    if job is not None and job.state in _ENDS:
        return Status(job.state, code, job.reason)
    if asked and (code is not None or job is None or job.state.is_final):
        return Status(PilotJobState.CANCELLED, code, "cancelled on request")
    if code is not None:
        return Status(PilotJobState.FAILED, code, f"the pilot ended with exit code {code}")
    if job is not None:
        return Status(job.state, None, job.reason)
    return Status(PilotJobState.UNKNOWN, None, "the batch system does not show the job, and it left no exit code")


def make_batch_element(queue: PandaQueue, wrapper: str, login: SshLogin | None) -> BatchElement:
    """The element of a queue whose ``[ce]`` is a batch system.

    Raises:
        InvalidDescriptionError: it is of another kind.
        CECredentialError: it has a host and there is no login.
    """
    ce = queue.ce
    if not isinstance(ce, BatchCE) or ce.kind not in DIALECTS:
        raise InvalidDescriptionError(f"the queue {queue.name} is not of a batch system")
    dialect = DIALECTS[ce.kind]()
    if not ce.host:
        return BatchElement(queue, wrapper, LocalTransport(ce.enter), dialect)
    login = given(queue, login, "the login")
    login = replace(login, user=ce.user or login.user)
    transport = SshTransport(ce.host, login, known_hosts=Path(ce.known_hosts), port=ce.port)
    return BatchElement(queue, wrapper, transport, dialect)
