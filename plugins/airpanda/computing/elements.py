"""The port to computing elements: one spec, n copies; states, outcomes and errors that all back-ends share.

Vocabulary: a *pilot job* is the CE's job that carries one pilot; its *handle* is the CE's identifier (CEJobID).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NewType, Protocol, runtime_checkable

from airpanda.computing.ces import BatchCE, GramCE, KubernetesCE, LocalCE, ScheddCE
from airpanda.computing.queues import PandaQueue
from airpanda.core.errors import ServiceError
from airpanda.core.secret import Secret

if TYPE_CHECKING:
    from airpanda.computing.ssh import SshLogin
    from airpanda.x509.credential import ProxyCredential

TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")

Handle = NewType("Handle", str)
"""What the CE calls one pilot job. Stable, and enough to find it again."""


class PilotJobState(StrEnum):
    """States of a pilot job. ``UNKNOWN`` is an observation, never a transition: the CE did not know the handle."""

    SUBMITTED = "submitted"
    QUEUED = "queued"
    STAGING = "staging"
    RUNNING = "running"
    COMPLETING = "completing"
    HELD = "held"
    DONE = "done"
    FAILED = "failed"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    LOST = "lost"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset(
    {
        PilotJobState.DONE,
        PilotJobState.FAILED,
        PilotJobState.TIMEOUT,
        PilotJobState.PREEMPTED,
        PilotJobState.CANCELLED,
        PilotJobState.LOST,
    }
)


_WAITING = (PilotJobState.SUBMITTED, PilotJobState.QUEUED, PilotJobState.STAGING, PilotJobState.HELD)
_RUNNING = (PilotJobState.RUNNING, PilotJobState.COMPLETING)


@dataclass(frozen=True)
class PilotBatch:
    """n copies of one pilot. ``tokens`` holds each copy's secret by PilotID.

    ``tag`` is unique for the batch over all time: it makes a repeated submission adopt what is there.
    """

    tag: str
    tokens: Mapping[int, Secret[str]] = field(repr=False)

    def __post_init__(self) -> None:
        if TAG.fullmatch(self.tag) is None:
            raise InvalidDescriptionError(f"the tag {self.tag!r} must be 1 to 64 letters, digits, '_' or '-'")
        if not self.tokens:
            raise InvalidDescriptionError("a batch needs at least one pilot")


@dataclass(frozen=True)
class Submission:
    """The handles by PilotID. ``adopted`` are those that an earlier call with this tag had started."""

    tag: str
    handles: Mapping[int, Handle]
    adopted: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Status:
    """One observation. ``exit_code`` is the pilot's own, where the CE knows it."""

    state: PilotJobState
    exit_code: int | None = None
    reason: str = ""


class Outcome(StrEnum):
    """What became of one request to cancel or purge. A repeat is no error."""

    ACCEPTED = "accepted"
    ALREADY_OVER = "already-over"
    STILL_RUNNING = "still-running"
    NOT_FOUND = "not-found"


def outcome_of(status: Status) -> Outcome:
    """What a request to end this pilot can do."""
    if status.state is PilotJobState.UNKNOWN:
        return Outcome.NOT_FOUND
    return Outcome.ALREADY_OVER if status.state.is_final else Outcome.ACCEPTED


@dataclass(frozen=True)
class Limits:
    """What one call may carry."""

    max_batch: int
    max_handles: int


class ComputingElement(Protocol):
    """Where pilots run. Every call is bulk and bounded in time; see ``Errors`` below for what each may raise."""

    name: str
    limits: Limits

    def submit(self, batch: PilotBatch) -> Submission:
        """Start the pilots, all or as many as the error says. A repeat with the same tag adopts, never doubles."""

    def status(self, handles: Sequence[Handle]) -> Mapping[Handle, Status]:
        """One status for each handle; what the CE does not know is ``UNKNOWN``."""

    def find(self, tag: str) -> Mapping[Handle, Status]:
        """The pilot jobs with exactly this tag, whoever submitted them and whenever."""

    def cancel(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Ask the pilots to end. A repeat after the grace time ends them by force."""

    def close(self) -> None:
        """Let go of connections; pilots run on."""


@runtime_checkable
class HasOutput(Protocol):
    """A CE that can show what a pilot wrote."""

    def fetch(self, handle: Handle, *, tail_bytes: int = 65536) -> bytes:
        """The end of the pilot's own log.

        Raises:
            NotFoundAtCEError: there is none.
        """


@runtime_checkable
class Purgeable(Protocol):
    """A CE that keeps the directories of ended pilots until told otherwise."""

    def purge(self, handles: Sequence[Handle]) -> Mapping[Handle, Outcome]:
        """Remove what ended pilots left. Running ones stay."""


@runtime_checkable
class Renewable(Protocol):
    """A CE that holds the pilots' credential, and takes a fresher one for all of them."""

    def renew(self, credential: ProxyCredential) -> datetime:
        """Put a fresh credential in the place of the pilots' old one, for waiting and running pilots alike.

        A repeat is safe. Needed also where nothing is submitted: pilots wait and run on it.

        Returns:
            when the credential ends that now lies at the CE.

        Raises:
            CECredentialError: the credential is over, or the CE does not accept it; the old one is still there.
            CEUnavailableError: some pilots may still have the old one; repeat.
        """


@runtime_checkable
class BringsCredential(Protocol):
    """A CE that gives each pilot its credential at the start, and no fresher one once it is on its way."""

    def credential_ends(self) -> datetime:
        """When the credential would end of a pilot that is sent now. Asks nobody."""


@runtime_checkable
class ListsTags(Protocol):
    """A CE that can list what it has of this installation: to find what nobody has on record."""

    def tagged(self, prefix: str) -> Mapping[str, Sequence[Handle]]:
        """The pilot jobs that have not ended, by tag, of all tags with this prefix."""


@dataclass(frozen=True)
class Load:
    """How busy a CE is. ``queued`` and ``running``: the account's pilots of any batch; ``free``: slots, if known."""

    queued: int
    running: int
    free: int | None = None

    @classmethod
    def of(cls, states: Iterable[PilotJobState]) -> Load:
        """The load that these pilot jobs are; ended and unknown ones are none."""
        counts = Counter(states)
        return cls(sum(counts[state] for state in _WAITING), sum(counts[state] for state in _RUNNING))


@runtime_checkable
class ReportsLoad(Protocol):
    """A CE that tells how busy it is in one cheap call."""

    def load(self) -> Load:
        """What is there now."""


# --- errors: who must act, and whether a repeat may help -----------------------------------------------------

Scope = Literal["request", "credential", "ce"]


class ComputingElementError(ServiceError):
    """A call to a CE failed. ``scope`` says what is at fault, ``transient`` whether a repeat may help."""

    code = "computing-element"
    scope: Scope = "ce"


class InvalidDescriptionError(ComputingElementError):
    """The CE will never accept this; correct the queue file or the batch."""

    code = "ce-invalid-description"
    scope: Scope = "request"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


class CECredentialError(ComputingElementError):
    """The credential for this CE must be renewed; the CE is not at fault."""

    code = "ce-credential"
    scope: Scope = "credential"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


BUSY_RETRY_S = 60.0
"""When to come back to a CE that does not say so itself."""


class ThrottledError(ComputingElementError):
    """The CE is full or asks for patience: no failure. Come back after ``retry_after_s``."""

    code = "ce-throttled"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, transient=True, retry_after_s=retry_after_s)


class CEUnavailableError(ComputingElementError):
    """The CE does not answer, and nothing was submitted."""

    code = "ce-unavailable"


class SubmitUncertainError(ComputingElementError):
    """The request went out and no answer came: call ``find(tag)`` or repeat the same submit, which adopts."""

    code = "ce-submit-uncertain"


class NotFoundAtCEError(ComputingElementError):
    """The CE does not know this handle."""

    code = "ce-not-found"
    scope: Scope = "request"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


def make_element(
    queue: PandaQueue,
    wrapper: Path,
    *,
    login: SshLogin | None = None,
    credential: ProxyCredential | None = None,
    token: Secret[str] | None = None,
) -> ComputingElement:
    """The computing element of a queue.

    Args:
        wrapper: the file that starts pilots, ``include/pilot/wrapper.sh``.
        login: for a queue with ``[ce] host``: what its ``conn_id`` holds.
        credential: for an ARC or GRAM CE: the robot's, which its ``conn_id`` names.
        token: for a Kubernetes cluster or a schedd: the password of its ``conn_id``.

    Raises:
        InvalidDescriptionError: the wrapper cannot be read.
        CECredentialError: the queue needs a login or a credential and there is none.
    """
    # A back-end imports the port, so the port imports it late.
    from airpanda.computing.batch import make_batch_element
    from airpanda.computing.local import LocalElement

    try:
        text = wrapper.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidDescriptionError(f"the pilot wrapper {wrapper} cannot be read: {error.strerror}") from error
    if isinstance(queue.ce, LocalCE):
        return LocalElement(queue, text)
    if isinstance(queue.ce, BatchCE):
        return make_batch_element(queue, text, login)
    if isinstance(queue.ce, GramCE):
        from airpanda.computing.gram import make_gram_element

        return make_gram_element(queue, text, credential)
    if isinstance(queue.ce, KubernetesCE):
        from airpanda.computing.kube import make_kubernetes_element

        return make_kubernetes_element(queue, text, token)
    if isinstance(queue.ce, ScheddCE):
        from airpanda.computing.schedd import make_schedd_element

        return make_schedd_element(queue, text, token)
    from airpanda.computing.arc import make_arc_element

    return make_arc_element(queue, text, credential)
