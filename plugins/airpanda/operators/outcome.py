"""What became of a panda task, in words and as a decision: pure functions of what the dispatcher says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from airflow.sdk.exceptions import AirflowException

from airpanda.messages import NOBODY_TOOK_IT, Blame, JobStatus, JobView

Fault = Literal["user", "site", "system", "credential", "cancelled"]
_WHO: Mapping[Fault, str] = {
    "user": "the payload or its description: its owner must act, trying again changes nothing",
    "site": "the site, not the payload: its administrator must act",
    "system": "the system, not the payload",
    "credential": "the owner's credential, which has ended or is refused",
    "cancelled": "nobody: a person stopped it",
}
_REMEDY: Mapping[Fault, str] = {
    "user": "When it is put right, clear this task: only what is not finished runs again.",
    "site": "Clear this task to try again, elsewhere where its panda_queue leaves a choice.",
    "system": "Clear this task to try again.",
    "credential": "Clear this task: it stages a fresh one.",
    "cancelled": "Clear this task to run what was stopped.",
}


@dataclass(frozen=True)
class SuccessRule:
    """How many jobs must finish: ``all``, a share (``"95%"``, ``0.95``), or at least a number (``950``)."""

    share: float = 1.0
    at_least: int | None = None

    @classmethod
    def parse(cls, rule: str | float | SuccessRule) -> SuccessRule:
        """Raises:
        ValueError: it is none; says what it may be.
        """
        if isinstance(rule, SuccessRule):
            return rule
        text = str(rule).strip()
        try:
            if text == "all":
                return cls()
            if text.endswith("%"):
                return cls._of_share(float(text[:-1]) / 100)
            if text.isdigit() and int(text) > 0 and not isinstance(rule, float):
                return cls(at_least=int(text))
            return cls._of_share(float(text))
        except ValueError:
            raise ValueError(
                f'success = {rule!r} must be "all", a share such as "95%" or 0.95, or a number of jobs such as 950'
            ) from None

    @classmethod
    def _of_share(cls, share: float) -> SuccessRule:
        if not 0 < share <= 1:
            raise ValueError(share)
        return cls(share)

    def needed(self, total: int) -> int:
        """Raises:
        ValueError: there are fewer jobs than must finish.
        """
        if self.at_least is None:
            return min(total, max(1, -int(-total * self.share // 1)))
        if self.at_least > total:
            raise ValueError(f"success asks for {self.at_least} finished jobs, but there are only {total}")
        return self.at_least

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least} must finish"
        return "all must finish" if self.share == 1 else f"{self.share:.4g} of them must finish"


class PandaJobsFailed(AirflowException):
    """Too few jobs have finished. ``faults`` counts the others by whose turn it is."""

    def __init__(self, message: str, faults: Mapping[Fault, int]) -> None:
        super().__init__(message)
        self.faults = dict(faults)


class PandaTaskLost(AirflowException):
    """The panda task can no longer be followed: the dispatcher refuses to answer for it."""


def fault_of(job: JobView) -> Fault:
    """Whose turn it is with a job that is final and not finished."""
    errors = job.attempts[0].errors if job.attempts else []
    if job.status is JobStatus.CANCELLED:
        return "cancelled"
    if job.status is JobStatus.CLOSED:
        return "site" if job.reason.startswith(NOBODY_TOOK_IT) else "credential"
    if not errors:
        return "user"
    return {Blame.USER: "user", Blame.SITE: "site", Blame.SYSTEM: "system"}[errors[0].blame]  # type: ignore[return-value]


def faults_of(jobs: Sequence[JobView]) -> Counter[Fault]:
    return Counter(map(fault_of, jobs))


def most_telling(jobs: Sequence[JobView]) -> JobView:
    """The job to show: one of the most frequent fault, the first of these."""
    ((fault, _),) = faults_of(jobs).most_common(1)
    return next(job for job in jobs if fault_of(job) == fault)


def paragraph(
    failed: Sequence[JobView], *, counts: Mapping[JobStatus, int], rule: str, next_step: str, says: str = ""
) -> list[str]:
    """What failed, whose fault it is, what happens now, where to look: what a person reads first.

    A sentence each, since Airflow's web UI cuts a line of a log where the page ends.

    Args:
        says: what the payload itself has to say, a sentence.
    """
    total, finished = sum(counts.values()), counts.get(JobStatus.FINISHED, 0)
    others = ", ".join(f"{status.value} {n}" for status, n in counts.items() if n and status != JobStatus.FINISHED)
    what = f"{total - finished} of {total} jobs did not finish ({others}); {rule}."
    if not failed:
        return [what, next_step]
    job = most_telling(failed)
    fault = fault_of(job)
    faults = faults_of(failed)
    whose = f"At fault is {_WHO[fault]}."
    if len(faults) > 1:
        whose = f"At fault is, in {faults[fault]} cases, {_WHO[fault]}; others: " + (
            ", ".join(f"{name} {n}" for name, n in faults.items() if name != fault) + "."
        )
    parts = (what, cause(job), says, whose, next_step or _REMEDY[fault], *where(job))
    return [part for part in parts if part]


def cause(job: JobView) -> str:
    """Why a job is as it is, in one sentence."""
    errors = job.attempts[0].errors if job.attempts else []
    name = f"PandaID {job.panda_id} ({job.job_name}) is {job.status.value}"
    if job.status is JobStatus.FAILED and errors:
        return f"{name}: {errors[0].source.value} error {errors[0].code}, {errors[0].diag.rstrip('.')}."
    return f"{name}: {job.reason.rstrip('.') or 'no reason was given'}."


def where(job: JobView) -> list[str]:
    """Where to look, a sentence each."""
    last = job.attempts[0] if job.attempts else None
    if last is None:
        return ["It never started, so it has no log."]
    return [
        f"Look at its log below (attempt {last.attempt_nr}, pilot {last.pilot_id} on {last.node or 'a node unknown'}).",
        f"The pilot's own log of it: /panda/v1/job/{job.panda_id}/pilot_log.",
    ]


def remedy(faults: Mapping[Fault, int]) -> str:
    """What a person does when nothing happens by itself."""
    return _REMEDY[max(faults, key=lambda fault: faults[fault])] if faults else _REMEDY["system"]


def summary(job: JobView) -> str:
    """One line per job: who ran what, as which account, where, how it ended."""
    last = job.attempts[0] if job.attempts else None
    if last is None:
        return f"PandaID={job.panda_id} {job.job_name} owner={job.owner_dn!r} {job.status.value}, never started"
    switched = {True: "switched", False: "identity NOT switched", None: "not started"}[last.identity_switched]
    return (
        f"PandaID={job.panda_id} {job.job_name} owner={job.owner_dn!r} {job.status.value} attempt={last.attempt_nr}"
        f" pilot={last.pilot_id} node={last.node} account={last.account_name}({last.account_uid}, {switched})"
        f" exit={last.exit_code} wall_s={last.wall_s} cpu_s={last.cpu_s}"
    )
