"""What GRAM is told and what it says: RSL, job contacts, states and errors. No I/O.

Source: Grid Community Toolkit 6.2: globusrun(1), globus-job-manager-rsl(7), globus_gram_protocol's error codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from airpanda.computing.elements import (
    BUSY_RETRY_S,
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    InvalidDescriptionError,
    PilotJobState,
    SubmitUncertainError,
    ThrottledError,
)

STATES: Mapping[str, PilotJobState] = {
    "UNSUBMITTED": PilotJobState.QUEUED,
    "PENDING": PilotJobState.QUEUED,
    "STAGE_IN": PilotJobState.STAGING,
    "ACTIVE": PilotJobState.RUNNING,
    "SUSPENDED": PilotJobState.HELD,
    "STAGE_OUT": PilotJobState.COMPLETING,
    "DONE": PilotJobState.DONE,
    "FAILED": PilotJobState.FAILED,
}
"""A job manager forgets a job soon after its end, and ``globusrun -status`` says DONE of what is forgotten."""

_CONTACT = re.compile(r"https://[A-Za-z0-9._:\[\]-]+/[0-9]+/[0-9]+/")
_TABLE: Sequence[tuple[re.Pattern[str], type[ComputingElementError]]] = (
    (re.compile(r"connection to the server failed|gatekeeper failed to run|shutting down"), CEUnavailableError),
    (re.compile(r"connecting to the job manager failed|cache file|quota|misconfigured"), CEUnavailableError),
    (re.compile(r"data transfer to the server failed|commit signal|unknown if the job was"), SubmitUncertainError),
    (re.compile(r"(?i)too many|would exceed|limit reached|not available|try again"), ThrottledError),
    (re.compile(r"(?i)\bRSL\b|failed to find the requested service|contact cannot be parsed"), InvalidDescriptionError),
    (re.compile(r"set default to the directory|executable .*not|script is missing"), InvalidDescriptionError),
    (re.compile(r"(?i)authenticat|credential|proxy|certificate|authoriz|\bGSS\b"), CECredentialError),
)


def quoted(text: str) -> str:
    """One word of RSL that means exactly this text.

    Raises:
        InvalidDescriptionError: the text holds a NUL, which no argument can.
    """
    if "\0" in text:
        raise InvalidDescriptionError("no argument of a GRAM job may hold a NUL character")
    return '"' + text.replace('"', '""') + '"'


def relation(attribute: str, *words: str) -> str:
    """``(attribute = words)``, each word quoted."""
    return f"({attribute}={' '.join(map(quoted, words))})"


def contact_in(output: str) -> str:
    """The job contact that ``globusrun`` printed; empty where there is none."""
    found = [line.strip() for line in output.splitlines() if _CONTACT.fullmatch(line.strip())]
    return found[-1] if found else ""


def is_contact(text: str) -> bool:
    """Whether this can be a job contact: it becomes an argument."""
    return _CONTACT.fullmatch(text) is not None


def state_in(output: str) -> PilotJobState | None:
    """The state that ``globusrun -status`` printed."""
    words = output.split()
    return STATES.get(words[-1]) if words else None


def to_error(name: str, said: str) -> ComputingElementError:
    """What a message of ``globusrun`` means; what no table knows may be over the next time."""
    words = " ".join(said.split())[-700:] or "nothing"
    kind = next((kind for pattern, kind in _TABLE if pattern.search(said)), CEUnavailableError)
    if kind is ThrottledError:
        return ThrottledError(f"{name} asks for patience: {words}", retry_after_s=BUSY_RETRY_S)
    if kind is CECredentialError:
        return CECredentialError(
            f"{name} and the robot do not accept each other; look at the robot's proxy, the site's mapping and"
            f" [ce] ca_dir: {words}"
        )
    if kind is InvalidDescriptionError:
        return InvalidDescriptionError(f"{name} will not take this; correct the queue file: {words}")
    if kind is SubmitUncertainError:
        return SubmitUncertainError(f"{name} gave no whole answer: {words}")
    return CEUnavailableError(f"{name} cannot do this now: {words}")
