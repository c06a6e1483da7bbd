"""The dispatcher's messages as the pilot sees them: plain values from and to JSON, no I/O.

The dispatcher validates the same messages with pydantic (``airpanda.messages``); a test holds both ends
together. Keys the pilot does not know are ignored, so that a newer dispatcher can talk to an older pilot; keys it
needs are required.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Optional

from airpanda.core.clock import from_wire
from airpanda.core.errors import ServiceError
from airpanda.core.secret import Secret

if TYPE_CHECKING:
    from airpanda.glexec.ports import LaunchRecord

LFN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,249}")
PAYLOAD_LOG = "payload.log"
PILOT_LOG = "pilot-log.tgz"
MAX_LOG_TAIL_CHARS = 16 * 1024
MAX_DEBUG_CHARS = 64 * 1024
MAX_SAMPLES = 240  # in one report
DEBUG = ("tail", "ps", "ls")
_MAX_QUESTION_CHARS = 100
_MAX_REASON_CHARS = 1000


@dataclass(frozen=True)
class Credential:
    """Where the owner's proxy is, released to this lease alone."""

    server: str
    username: str
    cred_name: str
    passphrase: Secret[str]
    owner_dn: str

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Input:
    """A file to fetch: from the dispatcher where ``source`` begins with ``panda:``, else from that URL.

    What is known of size and checksums (hexadecimal) must hold for what arrives.
    """

    lfn: str
    source: str
    size: Optional[int] = None
    adler32: Optional[str] = None
    sha256: Optional[str] = None


@dataclass(frozen=True)
class Output:
    """A file to keep: at the URL ``destination``, or at the dispatcher."""

    lfn: str
    destination: Optional[str] = None


@dataclass(frozen=True)
class Spec:
    """The payload. Names of files are plain names, checked."""

    argv: tuple[str, ...]
    env: dict[str, str]
    scripts: dict[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    walltime_s: int
    memory_mib: int
    disk_mib: int
    cores: int = 1


@dataclass(frozen=True)
class Job:
    """One leased attempt. ``token`` fences every report of it."""

    panda_id: int
    attempt_nr: int
    token: Secret[str]
    lease_expires_at: datetime
    heartbeat_s: float
    owner_dn: str
    spec: Spec
    credential: Credential

    def __str__(self) -> str:
        return f"job {self.panda_id} attempt {self.attempt_nr}"


@dataclass(frozen=True)
class AcquireReply:
    jobs: tuple[Job, ...]
    wait_s: float
    command: str


@dataclass(frozen=True)
class ReportReply:
    """``debug``: what a person wants to see, or empty, until a report has a ``debug_output``.

    ``refused``: why an attempt that was said to have finished has not.

    A pilot knows ``DEBUG``; a newer dispatcher may know more, and must be told so.
    """

    command: str
    lease_expires_at: datetime
    heartbeat_s: float
    debug: str = ""
    refused: str = ""


@dataclass
class Report:
    """One update of one attempt; ``to_wire`` is the message ``JobReport``."""

    job: Job
    job_status: str
    node: str
    pilot_uid: Optional[int] = None
    account_name: str = ""
    account_uid: Optional[int] = None
    identity_switched: Optional[bool] = None
    trans_exit_code: Optional[int] = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    use: Optional[dict[str, float]] = None
    credential_event: str = ""
    log_tail: str = ""
    launcher: Optional[dict[str, Any]] = None
    samples: list[dict[str, float]] = field(default_factory=list)
    debug_output: str = ""
    stored: list[dict[str, Any]] = field(default_factory=list)

    def to_wire(self) -> dict[str, Any]:
        """What is said and nothing else: the dispatcher treats a bare heartbeat in a cheaper way."""
        said = {key: value for key, value in vars(self).items() if key != "job" and value not in (None, "", [])}
        key = {"job_id": self.job.panda_id, "attempt_nr": self.job.attempt_nr, "token": self.job.token.reveal()}
        return {**key, **said}


def launcher_record(record: LaunchRecord) -> dict[str, Any]:
    """The message ``LauncherRecord``."""
    return {
        "dn": record.dn,
        "fqans": list(record.fqans),
        "issuer": record.issuer,
        "serial": record.serial,
        "fingerprint": record.fingerprint,
        "lease": record.lease,
        "launcher": record.launcher,
        "mapping": record.mapping,
    }


def read_acquire_reply(value: Any) -> AcquireReply:
    """Read the answer of ``acquire_jobs``.

    Raises:
        ServiceError: it is none; never quotes what came.
    """
    try:
        jobs = tuple(_job(item) for item in value["jobs"])
        return AcquireReply(jobs, max(0.0, float(value["wait_s"])), str(value.get("command", "")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _garbled("acquire_jobs", error) from None


def read_report_reply(value: Any) -> ReportReply:
    """Read the answer of ``update_job``.

    Raises:
        ServiceError: it is none.
    """
    try:
        heartbeat_s = max(0.05, float(value["heartbeat_s"]))
        debug, refused = value.get("debug"), value.get("refused")
        return ReportReply(
            str(value["command"]),
            from_wire(value["lease_expires_at"]),
            heartbeat_s,
            debug[:_MAX_QUESTION_CHARS] if isinstance(debug, str) else "",
            refused[:_MAX_REASON_CHARS] if isinstance(refused, str) else "",
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _garbled("update_job", error) from None


def _job(value: dict[str, Any]) -> Job:
    spec, credential = value["spec"], value["credential"]
    return Job(
        panda_id=int(value["panda_id"]),
        attempt_nr=int(value["attempt_nr"]),
        token=Secret(_text(value["token"])),
        lease_expires_at=from_wire(value["lease_expires_at"]),
        heartbeat_s=max(0.05, float(value["heartbeat_s"])),
        owner_dn=_text(value["owner_dn"]),
        spec=Spec(
            argv=tuple(_text(item) for item in spec["argv"]),
            env={_text(name): _text(item) for name, item in spec["env"].items()},
            scripts={_lfn(name): _text(text) for name, text in spec["scripts"].items()},
            inputs=tuple(_input(item) for item in spec["inputs"]),
            outputs=tuple(_output(item) for item in spec["outputs"]),
            walltime_s=int(spec["walltime_s"]),
            memory_mib=int(spec["memory_mib"]),
            disk_mib=int(spec["disk_mib"]),
            cores=int(spec["cores"]),
        ),
        credential=Credential(
            server=_text(credential["server"]),
            username=_text(credential["username"]),
            cred_name=_text(credential["cred_name"]),
            passphrase=Secret(_text(credential["passphrase"])),
            owner_dn=_text(credential["owner_dn"]),
        ),
    )


def _input(value: dict[str, Any]) -> Input:
    size = value.get("size")
    return Input(
        lfn=_lfn(value["lfn"]),
        source=_text(value["source"]),
        size=None if size is None else int(size),
        adler32=_text_or_none(value.get("adler32")),
        sha256=_text_or_none(value.get("sha256")),
    )


def _output(value: dict[str, Any]) -> Output:
    return Output(_lfn(value["lfn"]), _text_or_none(value.get("destination")))


def _text_or_none(value: Any) -> Optional[str]:
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def _lfn(value: Any) -> str:
    if not isinstance(value, str) or LFN.fullmatch(value) is None:
        raise ValueError("not a plain file name")
    return value


def _garbled(verb: str, error: Exception) -> ServiceError:
    return ServiceError(
        f"the dispatcher's answer to {verb} is not understood ({type(error).__name__})", transient=False
    )
