"""What becomes of a job after a report, after silence, after a kill: pure decisions.

Errors of the site and the system never use up the user's attempts: such an attempt is *returned*, at most
``MAX_RETURNS`` times. An error of the user, or a failure nobody explains, is *charged* against ``max_attempt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airpanda.core.errors import InvalidTransitionError
from airpanda.db.states import may_follow
from airpanda.messages import Blame, ErrorSource, JobError, JobStatus

MAX_RETURNS = 20
LOST_HEARTBEAT = 100  # PanDA's jobDispatcherErrorCode
NOT_STORED = 200  # PanDA's ddmErrorCode of the Adder, which looks what an ended job has left
NOT_HANDED_OVER = 403  # PanDA's taskBufferErrorCode: forbidden
_ORDER = (JobStatus.SENT, JobStatus.STARTING, JobStatus.RUNNING, JobStatus.HOLDING)


@dataclass(frozen=True)
class Held:
    """What the store knows of a leased job."""

    status: JobStatus
    max_attempt: int
    charged: int
    returned: int
    told_to_stop: bool


@dataclass(frozen=True)
class Goes:
    """The attempt goes on with this status; the same as before is a heartbeat."""

    status: JobStatus


@dataclass(frozen=True)
class Ends:
    """The attempt ends as ``attempt``; the job becomes ``job``, which is ``activated`` for one more attempt."""

    attempt: JobStatus
    job: JobStatus
    charged: int
    returned: int
    reason: str

    @property
    def is_next_attempt(self) -> bool:
        return self.job is JobStatus.ACTIVATED


def after_report(job: Held, reported: JobStatus, errors: Sequence[JobError]) -> Goes | Ends:
    """The decision on a report whose lease is in order.

    Raises:
        InvalidTransitionError: the reported status may not follow.
    """
    if reported in _ORDER:
        return _progress(job, reported)
    if reported is JobStatus.FINISHED:
        _demand(job.status, reported)
        return Ends(reported, reported, job.charged, job.returned, "")
    if reported is JobStatus.ACTIVATED and job.status not in (JobStatus.SENT, JobStatus.STARTING):
        raise InvalidTransitionError(f"a job that is {job.status} cannot be handed back: its payload has started")
    if job.told_to_stop:
        return Ends(JobStatus.CANCELLED, JobStatus.CANCELLED, job.charged, job.returned, "stopped on request")
    reason = summary(errors)
    if reported is JobStatus.ACTIVATED:
        return _returned(job, reason or "handed back without a reason")
    if reported is JobStatus.CANCELLED:
        return _returned(job, reason or "stopped by the pilot without a request")
    if errors and all(error.blame is not Blame.USER for error in errors):
        return _returned(job, reason)
    return _charged(job, reason or "the payload failed without saying why")


def after_silence(job: Held, error: JobError) -> Ends:
    """The decision when the lease ended without a report, or a state took too long, as the error says."""
    if job.told_to_stop:
        return Ends(JobStatus.CANCELLED, JobStatus.CANCELLED, job.charged, job.returned, "stopped on request")
    return _returned(job, summary([error]))


def good_node(ends: Ends, errors: Sequence[JobError]) -> bool | None:
    """What an end says of the node: good, bad, or None, nothing: the user's error, or stopped because a person asked.

    The first error is the most telling one: its blame counts.
    """
    if ends.attempt is JobStatus.FINISHED:
        return True
    if ends.attempt is JobStatus.CANCELLED or not errors or errors[0].blame is Blame.USER:
        return None
    return False


def took_too_long(status: JobStatus, longest_s: int) -> JobError:
    """PanDA's codes: 102 no reply in sent, 103 holding, 104 transferring, 105 anywhere else."""
    code = {JobStatus.SENT: 102, JobStatus.HOLDING: 103, JobStatus.TRANSFERRING: 104}.get(status, 105)
    says = f"{status} for more than {longest_s} s: the job is taken from its pilot and given to another one"
    return JobError(source=ErrorSource.DISPATCHER, code=code, diag=says, blame=Blame.SYSTEM)


def lost_heartbeat() -> JobError:
    return JobError(
        source=ErrorSource.DISPATCHER,
        code=LOST_HEARTBEAT,
        diag="lost heartbeat: the pilot fell silent; the job is given to another one",
        blame=Blame.SYSTEM,
    )


def not_handed_over() -> JobError:
    return JobError(
        source=ErrorSource.TASK_BUFFER,
        code=NOT_HANDED_OVER,
        diag="the passphrase of the owner's credential opens with no key of this service: no pilot was given the job",
        blame=Blame.SYSTEM,
    )


def not_stored(lfns: Sequence[str]) -> JobError:
    says = f"the pilot said finished, and {len(lfns)} declared outputs are on no record: {', '.join(lfns)}"
    return JobError(source=ErrorSource.DDM, code=NOT_STORED, diag=says[:1000], blame=Blame.SITE)


def summary(errors: Sequence[JobError]) -> str:
    """The first, most telling error in one line; empty without errors."""
    if not errors:
        return ""
    first = errors[0]
    return f"{first.source} error {first.code}: {first.diag}"[:1000]


def _progress(job: Held, reported: JobStatus) -> Goes:
    """A late ``starting`` or ``running`` of the same attempt is a heartbeat."""
    if job.status not in _ORDER or _ORDER.index(reported) <= _ORDER.index(job.status):
        return Goes(job.status)
    _demand(job.status, reported)
    return Goes(reported)


def _returned(job: Held, reason: str) -> Ends:
    returned = job.returned + 1
    if returned > MAX_RETURNS:
        reason = f"given up after {MAX_RETURNS} uncharged attempts; last: {reason}"
        return Ends(JobStatus.FAILED, JobStatus.FAILED, job.charged, returned, reason)
    return Ends(JobStatus.FAILED, JobStatus.ACTIVATED, job.charged, returned, reason)


def _charged(job: Held, reason: str) -> Ends:
    charged = job.charged + 1
    last = charged >= job.max_attempt
    return Ends(JobStatus.FAILED, JobStatus.FAILED if last else JobStatus.ACTIVATED, charged, job.returned, reason)


def _demand(old: JobStatus, new: JobStatus) -> None:
    if not may_follow(old, new):
        raise InvalidTransitionError(f"{new} may not follow {old}")
