"""The dispatcher's verbs for operators and triggers, as values: what to send and how to read the answer.

Pure, so that one description serves the synchronous hook of operators and the asynchronous one of triggers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from airpanda import messages as m

R = TypeVar("R")


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request. ``repeatable`` says that sending it twice changes nothing more than sending it once."""

    method: str
    path: str
    reply: TypeAdapter[R]
    body: m.Message | None = None
    params: Mapping[str, str | int | list[str]] = field(default_factory=dict)
    repeatable: bool = True

    def content(self) -> bytes | None:
        """The JSON body, or None."""
        return None if self.body is None else self.body.model_dump_json().encode()


_CREDENTIAL = TypeAdapter(m.CredentialView)
_CREDENTIALS = TypeAdapter(list[m.CredentialView])
_BAN = TypeAdapter(m.BanView)
_BANS = TypeAdapter(list[m.BanView])
_SUBMISSION = TypeAdapter(m.SubmissionReply)
_TASKS = TypeAdapter(m.TaskPage)
_WHY = TypeAdapter(m.WaitingView)
_PROGRESS = TypeAdapter(m.TaskProgress)
_PROGRESSES = TypeAdapter(list[m.TaskProgress])
_JOBS = TypeAdapter(list[m.JobView])
_JOB = TypeAdapter(m.JobView)
_INTENDED = TypeAdapter(m.IntendedBatch)
_BATCH = TypeAdapter(m.BatchView)
_TAGS = TypeAdapter(m.KnownTags)
_FACTORY = TypeAdapter(m.FactoryView)
_FACTORIES = TypeAdapter(list[m.FactoryState])
_QUEUE = TypeAdapter(m.QueueView)
_PROBE = TypeAdapter(m.PilotProbe)
_NOTHING: TypeAdapter[None] = TypeAdapter(None)
_AUDIT = TypeAdapter(list[m.AuditEntry])
_SHARE = TypeAdapter(m.ShareView)
_SHARES = TypeAdapter(m.SharesView)
_SANDBOX = TypeAdapter(m.SandboxView)


def register_credential(registration: m.CredentialRegistration) -> Call[m.CredentialView]:
    return Call("POST", "/v1/creds/register", _CREDENTIAL, registration)


def credential(credential_id: int) -> Call[m.CredentialView]:
    return Call("GET", f"/v1/creds/{credential_id}", _CREDENTIAL)


def credential_destroyed(credential_id: int) -> Call[m.CredentialView]:
    return Call("POST", f"/v1/creds/{credential_id}/destroyed", _CREDENTIAL)


def credential_revoked(credential_id: int) -> Call[m.CredentialView]:
    return Call("POST", f"/v1/creds/{credential_id}/revoke", _CREDENTIAL)


def staged(query: m.StagedQuery) -> Call[list[m.CredentialView]]:
    return Call("POST", "/v1/creds/staged", _CREDENTIALS, query)


def ban(wanted: m.BanRequest) -> Call[m.BanView]:
    return Call("POST", "/v1/bans", _BAN, wanted)


def lift_ban(wanted: m.BanRequest) -> Call[m.BanView]:
    return Call("POST", "/v1/bans/lift", _BAN, wanted)


def bans() -> Call[list[m.BanView]]:
    return Call("GET", "/v1/bans", _BANS)


def shares() -> Call[m.SharesView]:
    return Call("GET", "/v1/shares", _SHARES)


def set_share(wanted: m.ShareSet) -> Call[m.ShareView]:
    return Call("POST", "/v1/shares", _SHARE, wanted)


def end_share(wanted: m.ShareKey) -> Call[m.ShareView]:
    return Call("POST", "/v1/shares/end", _SHARE, wanted)


def audit(owner_dn: str, *, limit: int = 100) -> Call[list[m.AuditEntry]]:
    return Call("GET", "/v1/creds/audit", _AUDIT, params={"owner_dn": owner_dn, "limit": limit})


def submit(submission: m.JobSubmission) -> Call[m.SubmissionReply]:
    return Call("POST", "/v1/job/submit", _SUBMISSION, submission)


def job(panda_id: int) -> Call[m.JobView]:
    return Call("GET", f"/v1/job/{panda_id}", _JOB)


def why(panda_id: int) -> Call[m.WaitingView]:
    return Call("GET", f"/v1/job/{panda_id}/why", _WHY)


def progress(task_id: int) -> Call[m.TaskProgress]:
    return Call("GET", f"/v1/task/{task_id}/progress", _PROGRESS)


def jobs(
    task_id: int, *, limit: int = 1000, offset: int = 0, statuses: Iterable[m.JobStatus] = ()
) -> Call[list[m.JobView]]:
    """Jobs of a panda task, all or those of these states."""
    wanted = [status.value for status in statuses]
    return Call("GET", f"/v1/task/{task_id}/jobs", _JOBS, params={"limit": limit, "offset": offset, "status": wanted})


def progress_of(task_ids: Iterable[int]) -> Call[list[m.TaskProgress]]:
    """Of several panda tasks at once; those that do not exist for the caller are left out."""
    return Call("POST", "/v1/tasks/progress", _PROGRESSES, m.TaskNumbers(task_ids=list(task_ids)))


def my_open_tasks(before: int | None = None) -> Call[m.TaskPage]:
    """This client's panda tasks that have jobs which are not final, below a number; see ``TaskPage.before``."""
    below: dict[str, str | int | list[str]] = {} if before is None else {"before": before}
    return Call("GET", "/v1/tasks", _TASKS, params={"mine": "true", "open": "true", "limit": 1000, **below})


def touch_sandbox(owner: str, sha256: str) -> Call[m.SandboxView]:
    """Whether it is there; if so, it is kept for longer."""
    return Call("POST", f"/v1/file/sandbox/{quote(owner, safe='')}/{sha256}/touch", _SANDBOX)


def put_sandbox(owner: str, sha256: str) -> Call[m.SandboxView]:
    """Its body is the file's content, which ``PandaHook.put_sandbox`` sends."""
    return Call("PUT", f"/v1/file/sandbox/{quote(owner, safe='')}/{sha256}", _SANDBOX)


def kill(task_id: int, request: m.KillRequest) -> Call[m.TaskProgress]:
    return Call("POST", f"/v1/task/{task_id}/kill", _PROGRESS, request)


def intend_batch(intent: m.BatchIntent) -> Call[m.IntendedBatch]:
    """Not repeatable: without a key each call writes n new pilots, with one a repeat finds the batch held."""
    return Call("POST", "/v1/batch/intend", _INTENDED, intent, repeatable=False)


def take_batch(batch_id: int, wanted: m.BatchTake) -> Call[m.IntendedBatch]:
    """Not repeatable: the first call holds the batch."""
    return Call("POST", f"/v1/batch/{batch_id}/take", _INTENDED, wanted, repeatable=False)


def record_batch(batch_id: int, record: m.BatchRecord) -> Call[m.BatchView]:
    return Call("POST", f"/v1/batch/{batch_id}/record", _BATCH, record)


def observed(seen: m.PilotsSeen) -> Call[None]:
    return Call("POST", "/v1/batch/observed", _NOTHING, seen)


def batch(batch_id: int) -> Call[m.BatchView]:
    return Call("GET", f"/v1/batch/{batch_id}", _BATCH)


def pilot_probe(batch_id: int, pilot_id: int) -> Call[m.PilotProbe]:
    return Call("GET", f"/v1/batch/{batch_id}/pilot/{pilot_id}", _PROBE)


def cancel_batch(batch_id: int, wanted: m.BatchCancel) -> Call[m.BatchView]:
    return Call("POST", f"/v1/batch/{batch_id}/cancel", _BATCH, wanted)


def keep_pilot_log(batch_id: int, pilot_id: int, log: m.PilotLog) -> Call[None]:
    return Call("POST", f"/v1/batch/{batch_id}/pilot/{pilot_id}/log", _NOTHING, log)


def known_tags(wanted: m.KnownTags) -> Call[m.KnownTags]:
    return Call("POST", "/v1/batch/known", _TAGS, wanted)


def queue(name: str) -> Call[m.QueueView]:
    """How a PanDA queue is."""
    return Call("GET", f"/v1/queue/{quote(name, safe='')}", _QUEUE)


def factories() -> Call[list[m.FactoryState]]:
    return Call("GET", "/v1/factory", _FACTORIES)


def factory(queue: str) -> Call[m.FactoryView]:
    return Call("GET", f"/v1/factory/{quote(queue, safe='')}", _FACTORY)


def factory_begin(queue: str, wanted: m.FactoryBegin) -> Call[m.FactoryView]:
    """Not repeatable: the first call holds the queue."""
    return Call("POST", f"/v1/factory/{quote(queue, safe='')}/begin", _FACTORY, wanted, repeatable=False)


def factory_end(queue: str, end: m.FactoryEnd) -> Call[None]:
    return Call("POST", f"/v1/factory/{quote(queue, safe='')}/end", _NOTHING, end)
