"""What travels between the dispatcher and its callers: PanDA's v1 verbs, validated.

Times are RFC 3339 in UTC. An answer is the body itself with a 2xx status; a refusal is an RFC 9457 problem
document with the stable ``code`` of :mod:`airpanda.core.errors`. Unknown fields are refused, so that a typo
never becomes a silent default. Field names follow PanDA's REST API (panda-server 1.0, v1) where it has one.

The pilot speaks the same messages as plain JSON, since worker nodes have no pydantic; a contract test holds
both ends together.
"""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)

from airpanda.core.identity import MAX_DN_CHARS, Fqan, check_dn

MAX_JOBS_PER_SUBMISSION = 100_000
MAX_PROBE_CHARS = 256 * 1024
MAX_SHARED_SCRIPT_CHARS = 1024 * 1024
MAX_SAMPLES_PER_REPORT = 240
MAX_REPORTS_PER_BULK = 500
PAYLOAD_LOG = "payload.log"
PILOT_LOG = "pilot-log.tgz"
LOGS = (PAYLOAD_LOG, PILOT_LOG)
"""What a pilot may store of any attempt, beside the declared outputs."""


def _reveal(value: SecretStr) -> str:
    return value.get_secret_value()


def _without_nul(text: str) -> str:
    """Payloads print what they like; PostgreSQL's text takes everything but NUL."""
    return text.replace("\x00", "\ufffd")


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("holds a number that is none") from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character") from None
    if "\\u0000" in text or len(text) > MAX_PROBE_CHARS:
        raise ValueError(f"holds NUL, or more than {MAX_PROBE_CHARS} characters")
    return value


class Message(BaseModel):
    """Strict about fields, frozen once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(BaseModel):
    """RFC 9457. ``code`` is stable; ``detail`` is a sentence for a person."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str


Dn = Annotated[str, Field(min_length=3, max_length=MAX_DN_CHARS, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]{0,249}$")]
Lfn = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,249}$")]
Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Number = Annotated[int, Field(strict=True, ge=-(2**31), le=2**31 - 1)]
Id = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Adler32 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Size = Annotated[int, Field(strict=True, ge=0, le=2**53)]

# A host, never "user:password@": a URL is shown to people.
_REMOTE = r"(?:https|davs|root)://[A-Za-z0-9.\[\]:_-]+(?:/[!-~]*)?|file:///[!-~]*"
_STORED = r"panda:(?:[0-9]{1,18}/[A-Za-z0-9_][A-Za-z0-9._+-]{0,249}|sandbox/[0-9a-f]{64})"
RemoteUrl = Annotated[str, Field(max_length=4096, pattern=rf"^(?:{_REMOTE})$")]
FileSource = Annotated[str, Field(max_length=4096, pattern=rf"^(?:{_STORED}|{_REMOTE})$")]


class JobStatus(StrEnum):
    """PanDA's job states; the meanings and the allowed transitions are in ``airpanda.db.states``."""

    PENDING = "pending"
    DEFINED = "defined"
    ASSIGNED = "assigned"
    ACTIVATED = "activated"
    SENT = "sent"
    STARTING = "starting"
    RUNNING = "running"
    HOLDING = "holding"
    TRANSFERRING = "transferring"
    MERGING = "merging"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CLOSED = "closed"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


NOBODY_TOOK_IT = "no pilot has taken it within"
"""How the reason of a job begins that was closed because its queue had no pilot for it."""

_FINAL = frozenset({JobStatus.FINISHED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.CLOSED})


class ErrorSource(StrEnum):
    """Who reports an error, PanDA's component names."""

    PILOT = "pilot"
    PAYLOAD = "exe"
    DISPATCHER = "jobDispatcher"
    TASK_BUFFER = "taskBuffer"
    SUPERVISOR = "sup"
    DDM = "ddm"


class Blame(StrEnum):
    """Whose turn it is. Errors of the site and the system never use up the user's attempts."""

    USER = "user"
    SITE = "site"
    SYSTEM = "system"


class RetryAction(StrEnum):
    """What a retry rule does. A limit and no retry bind errors of the user only."""

    RETRY_HERE = "retry_here"
    RETRY_ELSEWHERE = "retry_elsewhere"
    MORE_MEMORY = "more_memory"
    MORE_TIME = "more_time"
    NO_RETRY = "no_retry"
    LIMIT = "limit"


class JobError(Message):
    """One error of one attempt. A job shows all of them, the most telling first."""

    source: ErrorSource
    code: Number
    diag: Text
    blame: Blame


class TaskInstanceKey(Message):
    """Airflow's task instance. ``map_index`` is -1 for an unmapped task; ``ti_id`` is this try's UUID."""

    dag_id: Name
    run_id: Annotated[str, Field(min_length=1, max_length=250, pattern=r"^[^\x00]*$")]
    task_id: Name
    map_index: Number = -1
    try_number: Number = 1
    ti_id: Annotated[str, Field(max_length=100, pattern=r"^[^\x00]*$")] = ""


# --- credentials ---------------------------------------------------------------------------------------------


class CredentialScope(StrEnum):
    """What one staged credential serves: one job, one panda task, or everything of its owner."""

    JOB = "job"
    TASK = "task"
    USER = "user"


QueueName = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._:+-]{0,249})$")]
QueueNames = Annotated[list[QueueName], Field(fail_fast=True, min_length=1, max_length=1000)]


class ConsentGiven(Message):
    """With a registration: the client that registers may use this credential itself. ``until``: its end, or sooner."""

    queues: QueueNames
    until: AwareDatetime | None = None


class ConsentGrant(Message):
    """An owner lets a client (the name in its token) use one credential, or all of the owner's.

    ``queues`` may be ``["*"]``. A repeat replaces what was given before.
    """

    client: Text
    queues: QueueNames
    until: AwareDatetime
    credential_id: Id | None = None


class ConsentView(ConsentGrant):
    """A consent on record."""

    owner_dn: str
    given_by: str
    given_at: datetime


class ConsentEnd(Message):
    """An owner takes consent back: from one client, or from all; for one credential, or for all and each of them."""

    client: Text | None = None
    credential_id: Id | None = None


class BanRequest(Message):
    """Exactly one of ``dn`` and ``fqan``. A group bans its subgroups and every role in it, too."""

    dn: Dn | None = None
    fqan: Annotated[str, Field(max_length=MAX_DN_CHARS)] | None = None
    reason: Text = ""

    @field_validator("dn")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return None if value is None else check_dn(value)

    @field_validator("fqan")
    @classmethod
    def _attribute(cls, value: str | None) -> str | None:
        return None if value is None else str(Fqan.parse(value))

    @model_validator(mode="after")
    def _one(self) -> BanRequest:
        if (self.dn is None) == (self.fqan is None):
            raise ValueError("name a DN or an FQAN")
        return self

    @property
    def key(self) -> tuple[str, str]:
        """Kind and name."""
        return ("dn", self.dn) if self.dn is not None else ("fqan", str(self.fqan))


class BanView(Message):
    """A ban on record."""

    kind: Literal["dn", "fqan"]
    name: str
    reason: str
    banned_by: str
    banned_at: datetime


class CredentialRegistration(Message):
    """A credential that now lies in MyProxy: POST ``/v1/creds/register``. The passphrase is stored encrypted."""

    owner: Name
    owner_dn: Dn
    fqans: Annotated[list[str], FailFast(), Field(max_length=64)] = Field(default_factory=list)
    server: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:-]+:[0-9]{1,5}$")]
    username: Annotated[str, Field(min_length=1, max_length=MAX_DN_CHARS)]
    cred_name: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    passphrase: SecretStr
    retriever_dn: Dn
    expires_at: AwareDatetime
    scope: CredentialScope = CredentialScope.TASK
    origin: Text = ""
    ti: TaskInstanceKey | None = None
    consent: ConsentGiven | None = None

    _dn = field_validator("owner_dn", "retriever_dn")(check_dn)
    _show = field_serializer("passphrase", when_used="json")(_reveal)

    @field_validator("fqans")
    @classmethod
    def _fqans(cls, values: list[str]) -> list[str]:
        return [str(Fqan.parse(value)) for value in values]


class CredentialView(Message):
    """A staged credential without its secret. Only ``staged`` ones are released.

    ``revoked``: no longer released, its passphrase forgotten, perhaps still in MyProxy; ``destroyed``: gone from there.
    """

    credential_id: int
    owner: Name
    owner_dn: str
    fqans: list[str]
    server: str
    username: str
    cred_name: str
    expires_at: datetime
    scope: CredentialScope
    state: Literal["staged", "revoked", "destroyed", "expired"]


class StagedQuery(Message):
    """POST ``/v1/creds/staged``: which staged credentials. ``ti``: staged by any try of this task instance."""

    owner: Name | None = None
    owner_dn: Dn | None = None
    ti: TaskInstanceKey | None = None
    ends_within_s: Count | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class CredentialPointer(Message):
    """What a lease holder needs to retrieve the owner's proxy; released once per (PandaID, attempt, pilot)."""

    credential_id: int
    server: str
    username: str
    cred_name: str
    passphrase: SecretStr
    owner_dn: str

    _show = field_serializer("passphrase", when_used="json")(_reveal)


AuditAction = Literal[
    "staged",
    "released",
    "retrieved",
    "renewed",
    "refused",
    "destroyed",
    "consented",
    "revoked",
    "banned",
    "unbanned",
]


class AuditEntry(Message):
    """One row of the append-only credential log: who did what with whose credential, where and when."""

    at: datetime
    action: AuditAction
    credential_id: int | None
    owner_dn: str
    actor: str
    panda_id: int | None
    attempt_nr: int | None
    pilot_id: int | None
    node: str
    detail: Text


# --- jobs ----------------------------------------------------------------------------------------------------


class InputFile(Message):
    """A file the payload finds in its sandbox.

    ``source`` is ``panda:<PandaID>/<lfn>``, an output of another job; ``panda:sandbox/<SHA-256>``, what a client has
    uploaded for the same owner (``SandboxView``); or the URL of a file that the pilot fetches with the owner's proxy:
    ``https``, ``davs``, ``root``, or ``file`` on the node. What is said of size and checksums (Adler-32 and SHA-256 in
    hexadecimal) must hold for what arrives. A pilot that cannot move files from or to URLs says so before the payload
    starts.
    """

    lfn: Lfn
    source: FileSource
    size: Size | None = None
    adler32: Adler32 | None = None
    sha256: Sha256 | None = None


class OutputFile(Message):
    """A file the payload leaves in its sandbox. ``access``: the owner only, or everybody of the VO.

    With a ``destination`` the pilot stores it there with the owner's proxy; without one, at the dispatcher.
    """

    lfn: Lfn
    access: Literal["owner", "vo"] = "owner"
    destination: RemoteUrl | None = None

    @field_validator("lfn")
    @classmethod
    def _no_log(cls, value: str) -> str:
        if value in LOGS:
            raise ValueError("is the name of a log that every job has")
        return value


Scripts = dict[Lfn, Annotated[str, Field(max_length=256 * 1024)]]


class JobSpec(Message):
    """One payload. ``argv[0]`` is looked up on the node's PATH; nothing here ever meets a shell.

    ``scripts`` maps a file name to text that is put into the sandbox before the start. ``features``: what a node must
    offer, all of them. ``working_group``: whose share the job counts for; the owner's credential must show a VOMS group
    of this name, in the organisation of its first attribute.
    """

    job_name: Name
    argv: Annotated[list[Text], FailFast(), Field(min_length=1, max_length=1000)]
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Text] = Field(default_factory=dict)
    scripts: Scripts = Field(default_factory=dict)
    inputs: Annotated[list[InputFile], FailFast(), Field(max_length=10_000)] = Field(default_factory=list)
    outputs: Annotated[list[OutputFile], FailFast(), Field(max_length=1000)] = Field(default_factory=list)
    cores: Annotated[int, Field(ge=1, le=4096)] = 1
    memory_mib: Count = 1000
    disk_mib: Count = 1000
    walltime_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 3600
    priority: Number = 1000
    max_attempt: Annotated[int, Field(ge=1, le=50)] = 3
    features: Annotated[list[Name], FailFast(), Field(max_length=64)] = Field(default_factory=list)
    working_group: Name | Literal[""] = ""

    @field_validator("argv")
    @classmethod
    def _program(cls, value: list[str]) -> list[str]:
        if not value[0]:
            raise ValueError("begins with an empty text, which is no program")
        return value


class JobSubmission(Message):
    """POST ``/v1/job/submit``. ``task_key`` makes it idempotent: a repeat answers with what is stored.

    ``credential_id`` names the staged credential the jobs may use. ``scripts`` are put into the sandbox of each job
    that has no script of that name itself; they are stored once.

    ``queue``: a name; or several, or ``*``, of which the dispatcher takes one that fits. Jobs that are tried again go
    where the submission says now, away from a site that failed them if there is another.

    ``generation`` counts how often a person has asked for the key anew (in Airflow: the tries before the last clear).
    With a higher one than is stored, ``start_over`` says whether the jobs are submitted as new ones, and the old ones
    stopped: never, when they have changed, or always. Unless never, a task instance of another run of the same name
    gets new jobs, too, once none of the old ones is open.

    ``inputs_now``: refuse the submission where an input that is another job's output does not exist yet.
    """

    task_key: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
    task_name: Name
    owner: Name
    credential_id: Id
    queue: QueueName | QueueNames
    ti: TaskInstanceKey
    jobs: Annotated[list[JobSpec], FailFast(), Field(min_length=1, max_length=MAX_JOBS_PER_SUBMISSION)]
    scripts: Annotated[Scripts, Field(max_length=64)] = Field(default_factory=dict)
    generation: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    start_over: Literal["never", "changed", "always"] = "never"
    inputs_now: bool = False

    @property
    def queues(self) -> list[str]:
        """The queues to choose from; ``*`` stands for all."""
        return [self.queue] if isinstance(self.queue, str) else self.queue

    @field_validator("scripts")
    @classmethod
    def _together(cls, value: dict[str, str]) -> dict[str, str]:
        if sum(map(len, value.values())) > MAX_SHARED_SCRIPT_CHARS:
            raise ValueError(f"shared scripts have more than {MAX_SHARED_SCRIPT_CHARS} characters together")
        return value


class SubmissionReply(Message):
    """``created`` is false when the key was known. ``resumed`` counts jobs given a new attempt by this call."""

    task_id: int
    first_panda_id: int
    n_jobs: int
    created: bool
    resumed: int = 0
    queue: str = ""


class TaskProgress(Message):
    """GET ``/v1/task/{task_id}/progress``: jobs by state. ``done`` when every job is final."""

    task_id: int
    counts: dict[JobStatus, int]
    total: int
    done: bool
    note: Text = ""
    suspected: int = Field(default=0, description="jobs whose pilot has said nothing for long")


class TaskNumbers(Message):
    """POST ``/v1/tasks/progress``: of several panda tasks at once, so that whoever waits for many asks once."""

    task_ids: Annotated[list[Id], FailFast(), Field(min_length=1, max_length=1000)]


class LauncherRecord(Message):
    """As whom the launcher ran a payload, and why: what a site needs to find the person behind a process.

    ``dn``, ``fqans``, ``issuer``, ``serial`` and ``fingerprint`` (SHA-256 in hexadecimal) are those of the proxy it
    verified; ``lease`` names the account's lease, ``launcher`` its kind (socket, sudo, root; one that is not ours
    is glexec and says no more; contained, uncontained), ``mapping`` what chose the account (lcmaps, own, dynamic).
    """

    dn: Text = ""
    fqans: Annotated[list[Text], FailFast(), Field(max_length=64)] = Field(default_factory=list)
    issuer: Text = ""
    serial: Text = ""
    fingerprint: Text = ""
    lease: Text = ""
    launcher: Text = ""
    mapping: Text = ""


class AttemptView(Message):
    """One attempt of a job, as a person wants to see it. ``account_*`` were seen from outside the payload."""

    attempt_nr: int
    status: JobStatus
    pilot_id: int | None
    node: str
    pilot_uid: int | None
    account_name: str
    account_uid: int | None
    identity_switched: bool | None
    exit_code: int | None
    errors: list[JobError]
    started_at: datetime | None
    ended_at: datetime | None
    wall_s: float | None
    cpu_s: float | None
    max_rss_mib: float | None
    launcher: LauncherRecord | None = None
    why: str = Field(default="", description="what was decided at its end, by which rules")


class JobView(Message):
    """A job with all its attempts, newest first. ``reason`` tells why the job has its status, where there is one.

    ``logs`` are those of the latest attempt: GET ``/v1/job/{panda_id}/log`` and ``/v1/job/{panda_id}/pilot_log``.
    """

    panda_id: int
    task_id: int
    job_name: str
    owner: str
    owner_dn: str
    queue: str
    status: JobStatus
    attempt_nr: int
    max_attempt: int
    ti: TaskInstanceKey
    outputs: list[FileView]
    attempts: list[AttemptView]
    reason: Text = ""
    logs: list[FileView] = Field(default_factory=list)
    silent_s: float | None = Field(default=None, description="suspected: its pilot has said nothing for so long")


class FileView(Message):
    """A stored output or log. ``source`` can be used as another job's input; ``url`` is where it lies, if not here."""

    lfn: str
    source: str
    size: int
    sha256: str
    access: Literal["owner", "vo"]
    adler32: str = ""
    url: str = ""


class SandboxView(Message):
    """PUT ``/v1/file/sandbox/{owner}/{sha256}``: what was uploaded. ``source`` is that of an input of its owner's."""

    owner: str
    sha256: str
    size: int
    adler32: str
    source: str


class JobStatusView(Message):
    """Where a job is. ``attempt_nr`` is the attempt that runs, waits, or was the last."""

    panda_id: int
    attempt_nr: int
    status: JobStatus


class JobSummary(JobStatusView):
    """A job in a list. ``reason`` tells why it has its status, where there is one."""

    task_id: int
    job_name: str
    owner: str
    queue: str
    priority: int
    max_attempt: int
    changed_at: datetime
    reason: str
    silent_s: float | None = Field(default=None, description="suspected: its pilot has said nothing for so long")


class JobPage(Message):
    """GET ``/v1/jobs``: the newest first. A page may be short; there are more as long as ``before`` is not None."""

    jobs: list[JobSummary]
    before: int | None


class TaskView(Message):
    """A panda task with its jobs by state. Its jobs are ``first_panda_id`` and the ``n_jobs`` - 1 after it."""

    task_id: int
    task_name: str
    owner: str
    owner_dn: str
    queue: str
    first_panda_id: int
    n_jobs: int
    counts: dict[JobStatus, int]
    done: bool
    ti: TaskInstanceKey
    submitted_by: str
    created_at: datetime
    archived_at: datetime | None = Field(default=None, description="since when its jobs are kept for looking at only")
    suspected: int = Field(default=0, description="jobs whose pilot has said nothing for long")


class TaskPage(Message):
    """GET ``/v1/tasks``: the newest first. A page may be short; there are more as long as ``before`` is not None."""

    tasks: list[TaskView]
    before: int | None


class WaitingView(Message):
    """GET ``/v1/job/{panda_id}/why``: why a job waits, in one sentence; or that it does not wait."""

    panda_id: int
    status: JobStatus
    queue: str
    why: str


class RetryRuleSet(Message):
    """POST ``/v1/retry_rules``: what a known error changes about the next attempt.

    ``code`` None, ``pattern`` and ``queue`` empty: any. ``pattern``: how the error's text begins, where ``*`` stands
    for any text and ``?`` for any one character; upper and lower case are the same. No regular expression.
    ``factor``: of ``more_memory`` and ``more_time``; ``max_attempt``: of ``limit``. Not ``is_active``: it only logs.
    """

    source: ErrorSource
    code: Number | None = None
    pattern: Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")] = ""
    queue: Name | Literal[""] = ""
    action: RetryAction
    factor: Annotated[float, Field(gt=1, le=16)] = 1.5
    max_attempt: Annotated[int, Field(ge=1, le=50)] = 2
    is_active: bool = True
    expires_at: AwareDatetime | None = None
    description: Text = ""


class RetryRuleView(RetryRuleSet):
    """A rule on record."""

    rule_id: int
    set_by: str
    set_at: datetime


class ShareKey(Message):
    """Of whom something is said: an organisation (the first component of VOMS attributes), a working group, an owner.

    ``*``: each that nothing else is said of. Empty: jobs without an organisation, or without a working group.
    """

    kind: Literal["vo", "working_group", "owner"]
    name: Name | Literal["*", ""]

    @model_validator(mode="after")
    def _owners_have_names(self) -> ShareKey:
        if self.kind == "owner" and not self.name:
            raise ValueError("every job has an owner: name one, or * for each that is not named")
        return self


class ShareSet(ShareKey):
    """POST ``/v1/shares``: in whole; what is left out has its default.

    ``weight``: among its siblings; working groups share what their organisation gets, owners what their group gets.
    ``max_jobs``, ``max_cores``: what it may have with pilots at once, at all queues together (None: any number); of a
    working group in each organisation that has one of this name. ``priority_offset`` is an owner's: what is added to
    the priority that its jobs ask for.
    """

    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    max_jobs: Annotated[int, Field(strict=True, ge=0, le=2**53)] | None = None
    max_cores: Annotated[int, Field(strict=True, ge=0, le=2**53)] | None = None
    priority_offset: Annotated[int, Field(strict=True, ge=-10_000, le=10_000)] = 0

    @model_validator(mode="after")
    def _of_owners(self) -> ShareSet:
        if self.kind != "owner" and self.priority_offset:
            raise ValueError("priorities are an owner's: name one, or * for each that is not named")
        return self


class ShareView(ShareSet):
    """A share on record."""

    set_by: str
    set_at: datetime


class ShareNode(Message):
    """A node of the tree with jobs that wait or run; ``working_group`` and ``owner`` are None above their level.

    ``target`` and ``actual``: parts of the cores that its parent's jobs have with pilots now; the targets of siblings
    with jobs add up to 1.
    """

    vo: str
    working_group: str | None
    owner: str | None
    weight: float
    target: float
    actual: float
    jobs: int
    cores: int
    waiting: int


class SharesView(Message):
    """GET ``/v1/shares``: what was told, and what comes of it."""

    told: list[ShareView]
    nodes: list[ShareNode]


class JobKill(Message):
    """POST ``/v1/job/{panda_id}/kill``."""

    reason: Text


class KillRequest(Message):
    """POST ``/v1/task/{task_id}/kill``. With ``ti`` only what that try still owns is cancelled."""

    reason: Text
    ti: TaskInstanceKey | None = None


DebugWhat = Literal["tail", "ps", "ls"]


class DebugRequest(Message):
    """POST ``/v1/job/{panda_id}/debug``: what the pilot of the running attempt is to show at its next heartbeat."""

    what: DebugWhat


class DebugAsked(Message):
    """The attempt that was asked. Its answer is GET ``/v1/job/{panda_id}/debug``."""

    panda_id: int
    attempt_nr: int
    what: DebugWhat


# --- pilots --------------------------------------------------------------------------------------------------


class PilotOffer(Message):
    """POST ``/v1/pilot/acquire_jobs``: what the node has left, after its probe.

    A pilot that runs payloads side by side offers what they leave. ``features``: what its queue promises, and what its
    probe found: ``has:`` a container runtime, ``gpu``, ``gpu-nvidia``, ``gpu-amd``, ``user-namespaces``; ``arch:`` a
    machine or an x86-64 level.
    ``avoid_owners``: whose jobs it could not start lately for a reason that is not its node's.
    """

    site_name: Name
    node: Text
    n_jobs: Annotated[int, Field(ge=1, le=1000)] = 1
    cores: Count = 1
    memory: Annotated[Count, Field(description="MiB")]
    disk_space: Annotated[Count, Field(description="MiB")]
    remaining_time: Annotated[Count, Field(description="seconds")]
    features: Annotated[list[Name], FailFast(), Field(max_length=256)] = Field(default_factory=list)
    avoid_owners: Annotated[list[Dn], FailFast(), Field(max_length=100)] = Field(default_factory=list)


class AcquiredJob(Message):
    """One leased job. ``token`` fences every later report of this attempt."""

    panda_id: int
    attempt_nr: int
    token: str = Field(repr=False)
    lease_expires_at: datetime
    heartbeat_s: float
    owner_dn: str
    spec: JobSpec
    credential: CredentialPointer


class AcquireReply(Message):
    """``wait_s`` tells a pilot without work when to ask again; ``command`` ``drain`` sends it home."""

    jobs: list[AcquiredJob]
    wait_s: float
    command: Literal["", "drain"] = ""


class ResourceUse(Message):
    """Measured from outside the payload, whole tree."""

    wall_s: Amount = 0.0
    cpu_s: Amount = 0.0
    max_rss_mib: Amount = 0.0


class Sample(Message):
    """One measurement of a running payload, from outside, whole tree. ``at_s`` since its start; counters since then.

    ``rss_mib`` counts memory that processes share for each of them, ``pss_mib`` once (at the last look of who may look,
    at most a minute before); None where nobody could.
    """

    at_s: Amount
    cpu_s: Amount
    rss_mib: Amount
    read_mib: Amount
    written_mib: Amount
    disk_mib: Amount
    pss_mib: Amount | None = None
    processes: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class StoredFile(Message):
    """An output that lies at its destination now: ``url`` is that, with the name where it ends in a slash."""

    lfn: Lfn
    url: RemoteUrl
    size: Size
    adler32: Adler32
    sha256: Sha256


class JobReport(Message):
    """POST ``/v1/pilot/update_job``. Without ``job_status`` change it is a heartbeat. A repeat changes nothing.

    ``job_status`` ``activated`` hands the job back unharmed (identity switch or node failed, payload never ran).
    """

    job_id: Id
    attempt_nr: Count
    token: str = Field(repr=False, max_length=200)
    job_status: Literal["starting", "running", "holding", "finished", "failed", "cancelled", "activated"]
    node: Text = ""
    pilot_uid: Id | None = None
    account_name: Text = ""
    account_uid: Id | None = None
    identity_switched: bool | None = None
    trans_exit_code: Number | None = None
    errors: Annotated[list[JobError], FailFast(), Field(max_length=100)] = Field(default_factory=list)
    use: ResourceUse | None = None
    credential_event: Literal["", "retrieved", "renewed", "refused"] = ""
    log_tail: Annotated[str, Field(max_length=64 * 1024), AfterValidator(_without_nul)] = ""
    launcher: LauncherRecord | None = None
    samples: Annotated[list[Sample], FailFast(), Field(max_length=MAX_SAMPLES_PER_REPORT)] = Field(default_factory=list)
    debug_output: Annotated[str, Field(max_length=64 * 1024), AfterValidator(_without_nul)] = ""
    stored: Annotated[list[StoredFile], FailFast(), Field(max_length=1000)] = Field(default_factory=list)


class ReportReply(Message):
    """``command`` ``tobekilled`` means stop the payload now, whatever its state.

    ``debug``: what a person wants to see; it is asked for until a report brings a ``debug_output``.
    ``refused``: why an attempt that was said to have finished has not.
    """

    command: Literal["", "tobekilled", "drain"] = ""
    lease_expires_at: datetime
    heartbeat_s: float
    debug: Literal["", "tail", "ps", "ls"] = ""
    refused: str = ""


class BulkReport(Message):
    """POST ``/v1/pilot/update_jobs_bulk``: reports of several attempts of one pilot, each answered for itself."""

    job_list: Annotated[list[JobReport], FailFast(), Field(min_length=1, max_length=MAX_REPORTS_PER_BULK)]


class BulkResult(Message):
    """The answer to one report of a bulk: what ``update_job`` would have answered, or its problem."""

    job_id: int
    attempt_nr: int
    reply: ReportReply | None = None
    problem: Problem | None = None


class WorkerReport(Message):
    """POST ``/v1/pilot/update_worker_status``: a pilot starts, benches itself, or ends; with its probe transcript."""

    status: Literal["started", "benched", "finished"]
    node: Text
    pilot_uid: Id | None = None
    probe: Annotated[dict[str, Any], AfterValidator(_storable)] = Field(default_factory=dict)
    reason: Text = ""


class PilotCommand(Message):
    """Answer to a worker report. ``drain`` means: take no more work and end."""

    command: Literal["", "drain"] = ""


# --- pilot batches (computing elements) ----------------------------------------------------------------------


CeState = Literal[
    "", "submitted", "queued", "staging", "running", "completing", "held",
    "done", "failed", "timeout", "preempted", "cancelled", "lost", "unknown",
]  # fmt: skip
"""A computing element's word on a pilot job, as ``airpanda.computing.elements.PilotJobState``; "" before the first."""

PilotState = Literal[
    "intended", "submitted", "started", "benched", "finished", "failed", "lost", "cancelled",
]  # fmt: skip

HoldS = Annotated[int, Field(strict=True, ge=1, le=3600)]


class BatchIntent(Message):
    """POST ``/v1/batch/intend``: the intent rows of n pilots, written before anything is submitted.

    ``key`` makes it idempotent: a repeat answers with the same pilots for as long as any of them may live, so that who
    submits them again under their tag adopts them. The caller holds the batch for ``hold_s``: longer than the computing
    element may take. ``purpose`` ``probe``: its pilots show their node and get no jobs. ``ce``: the queue's computing
    element that it is for, where the queue has several. ``only_known``: go on with what the key has, and write nothing
    new; refused as not found where it has nothing.
    """

    queue: Name
    n_pilots: Annotated[int, Field(ge=1, le=10_000)]
    only_known: bool = False
    ti: TaskInstanceKey | None = None
    key: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] = ""
    purpose: Literal["work", "probe"] = "work"
    ce: Name | Literal[""] = ""
    hold_s: HoldS = 180
    factory_fence: Annotated[
        int, Field(ge=0, description="refused unless this still holds the queue's factory; 0: no factory")
    ] = 0


class BatchTake(Message):
    """POST ``/v1/batch/{batch_id}/take``: go on with a submission that nobody holds any more."""

    hold_s: HoldS = 180


class PilotTicket(Message):
    """One pilot's own identity. The token goes into a 0600 file of that pilot and nowhere else."""

    pilot_id: int
    token: SecretStr

    _show = field_serializer("token", when_used="json")(_reveal)


class IntendedBatch(Message):
    """``tag`` is unique and finds the batch again at the computing element.

    ``fence`` is the holder's, for the record. ``state`` ``submitted``: all is done already, and there are no tickets.
    """

    batch_id: int
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    pilots: list[PilotTicket]
    queue: dict[str, Any]
    fence: int = 1
    state: Literal["intended", "uncertain", "submitted"] = "intended"
    ce: str = ""


class BatchRecord(Message):
    """POST ``/v1/batch/{batch_id}/record``: the handles (CEJobIDs) a submission returned, by PilotID.

    Refused where another holder has taken the batch over since (``fence``). A repeat changes nothing.
    """

    state: Literal["submitted", "failed", "uncertain"]
    ce: Name
    handles: dict[Annotated[int, Field(ge=0, le=2**63 - 1)], Text] = Field(default_factory=dict)
    reason: Text = ""
    fence: Count = 1


class PilotSeen(Message):
    """What a computing element said of one pilot; ``asked_to_end``: it was told to end it."""

    pilot_id: Id
    ce_state: CeState = ""
    reason: Text = ""
    asked_to_end: bool = False


class PilotsSeen(Message):
    """POST ``/v1/batch/observed``: what was seen of a queue's pilots. A pilot that speaks outranks it."""

    queue: Name
    pilots: Annotated[list[PilotSeen], FailFast(), Field(max_length=20_000)]


class PilotView(Message):
    """A pilot on record. ``state`` is its own word, ``ce_state`` the computing element's."""

    pilot_id: int
    batch_id: int
    queue: str
    ce: str
    ce_job_id: str
    state: PilotState
    node: str
    reason: str
    last_seen_at: datetime | None
    ce_state: CeState = ""
    created_at: datetime | None = None
    registered_at: datetime | None = None
    ended_at: datetime | None = None


class BatchCancel(Message):
    """POST ``/v1/batch/{batch_id}/cancel``: its pilots get no more jobs; whoever asks ends them at their element.

    With ``ti`` only if that try still owns the batch; else the answer names no pilots.
    """

    reason: Text
    ti: TaskInstanceKey | None = None


class PilotLog(Message):
    """POST ``/v1/batch/{batch_id}/pilot/{pilot_id}/log``: the end of a pilot's own log, as its element shows it."""

    text: Annotated[str, Field(max_length=64 * 1024), AfterValidator(_without_nul)]


class KnownTags(Message):
    """POST ``/v1/batch/known``, and its answer: those of them that are on record."""

    tags: Annotated[list[Text], FailFast(), Field(max_length=20_000)]


class PilotProbe(PilotView):
    """GET ``/v1/batch/{batch_id}/pilot/{pilot_id}``: a pilot with what it found on its node."""

    probe: dict[str, Any] | None
    log_tail: str = ""


class BatchView(Message):
    batch_id: int
    tag: str
    queue: str
    state: str
    pilots: list[PilotView]
    ce: str = ""
    reason: str = ""


# --- the pilot factory ---------------------------------------------------------------------------------------


class FactoryBegin(Message):
    """POST ``/v1/factory/{queue}/begin``: be the one factory of this queue for ``hold_s``."""

    holder: Text
    hold_s: HoldS = 600


class Demand(Message):
    """Jobs that wait and that a pilot of the queue could take; counted up to a bound."""

    waiting: int
    waiting_cores: int


class LivePilot(Message):
    """A pilot that has not ended, for all that is known.

    ``kind`` ``probe``: that of a test of the queue, which takes no jobs. ``unheard_s``: for how long it has said
    nothing, though its element says that it runs, or it should ask for work.
    """

    pilot_id: int
    batch_id: int
    ce: str
    handle: str
    kind: Literal["queued", "idle", "busy", "silent", "probe"]
    ce_state: CeState
    age_s: float
    unheard_s: float
    asked_to_end: bool
    by_factory: bool = False


class RecentBatch(Message):
    """What came of a submission; see ``airpanda.computing.factory.values.BatchOutcome``."""

    batch_id: int
    ce: str
    pilots: int
    registered: int
    eaten: int
    cancelled: int


class RecentNode(Message):
    """What came of pilots on one node lately."""

    node: str
    pilots: int
    short: int
    jobs_done: int
    jobs_failed: int


class OpenBatch(Message):
    """A submission that has no known end. ``held``: somebody may still be at it."""

    batch_id: int
    tag: str
    ce: str
    n_pilots: int
    held: bool
    age_s: float
    by_factory: bool


class FactoryView(Message):
    """Everything that the factory of one queue decides from. ``fence`` is 0 where it is not held."""

    queue: dict[str, Any]
    installation: str
    fence: int
    memory: dict[str, Any]
    demand: Demand
    pilots: list[LivePilot]
    batches: list[RecentBatch]
    queue_s: dict[str, float]
    nodes: list[RecentNode]
    bad_nodes: dict[str, datetime]
    open: list[OpenBatch]


class NodeBench(Message):
    """A node whose pilots get no jobs for a while."""

    node: Text
    until: AwareDatetime
    reason: Text


class FactoryEnd(Message):
    """POST ``/v1/factory/{queue}/end``: what the cycle has decided and remembers. Refused for who lost the queue."""

    fence: Count
    memory: Annotated[dict[str, Any], AfterValidator(_storable)]
    decisions: Annotated[list[Text], FailFast(), Field(max_length=1000)]
    benches: Annotated[list[NodeBench], FailFast(), Field(max_length=1000)] = Field(default_factory=list)


class FactoryState(Message):
    """A queue and its factory's last cycle."""

    queue: str
    state: str
    live_pilots: int
    decisions: list[str]
    cycled_at: datetime | None


class QueueView(Message):
    """GET ``/v1/queue/{queue}``: whether a queue takes jobs, how many wait there, and what its pilots do.

    ``queued`` pilots wait at the site, ``idle`` ones ask for work, ``busy`` ones have it, ``silent`` ones have not been
    heard of.
    """

    queue: str
    state: Literal["online", "offline"]
    waiting: int
    queued: int = 0
    idle: int = 0
    busy: int = 0
    silent: int = 0


JobView.model_rebuild()
