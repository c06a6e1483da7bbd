"""What elements refuse by themselves, before anything travels, and what it means when no answer came. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from airpanda.computing.elements import (
    BUSY_RETRY_S,
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    Limits,
    PilotBatch,
    SubmitUncertainError,
    ThrottledError,
)
from airpanda.computing.queues import PandaQueue
from airpanda.core.text import whole_number

if TYPE_CHECKING:
    from airpanda.x509.credential import ProxyCredential

_LONGEST_RETRY_S = 3600.0
_T = TypeVar("_T")


def check_size(batch: PilotBatch, limits: Limits) -> None:
    """Raises: InvalidDescriptionError: more pilots than one call may carry."""
    if len(batch.tokens) > limits.max_batch:
        raise InvalidDescriptionError(f"{len(batch.tokens)} pilots exceed the limit of {limits.max_batch}")


def check_handles(handles: Sequence[Handle], limits: Limits) -> None:
    """Raises: InvalidDescriptionError: more handles than one call may carry."""
    if len(handles) > limits.max_handles:
        raise InvalidDescriptionError(f"{len(handles)} handles exceed the limit of {limits.max_handles}")


def parsed(handles: Iterable[Handle], pattern: re.Pattern[str], of: str) -> list[re.Match[str]]:
    """The handles' parts. Handles become paths, arguments and selectors: anything else may not travel.

    Args:
        of: what they must be handles of, with its article.

    Raises:
        InvalidDescriptionError: one has another form.
    """
    found = []
    for handle in handles:
        match = pattern.fullmatch(handle)
        if match is None:
            raise InvalidDescriptionError(f"{handle!r} is no handle of {of}")
        found.append(match)
    return found


def check_room(name: str, *, busy: int, wanted: int, limit: int) -> None:
    """Raises: ThrottledError: the element ``name`` would have more pilots than ``[ce] max_pilots``, its ``limit``."""
    if busy + wanted > limit:
        text = f"{busy} pilots are there and {wanted} more would exceed [ce] max_pilots = {limit}"
        raise ThrottledError(f"{name}: {text}", retry_after_s=BUSY_RETRY_S)


def given(queue: PandaQueue, secret: _T | None, what: str, how: str = "") -> _T:
    """What the Connection of a queue's ``[ce] conn_id`` holds.

    Args:
        what: how a person calls it.
        how: ", as" what of the Connection it is expected.

    Raises:
        CECredentialError: there is none.
    """
    if secret is None:
        conn_id = getattr(queue.ce, "conn_id", "")
        raise CECredentialError(f"the queue {queue.name} needs {what} of the connection {conn_id!r}{how}")
    return secret


def check_fresh(name: str, credential: ProxyCredential, now: datetime) -> None:
    """Raises: CECredentialError: the credential is over, so it does not replace another one at the element."""
    if credential.not_after <= now:
        raise CECredentialError(f"the credential of {credential.identity} is over; the old one stays at {name}")


def check_outlives(name: str, credential: ProxyCredential, now: datetime, walltime: timedelta) -> None:
    """Raises: CECredentialError: the credential ends before a pilot that starts now would."""
    if credential.not_after - now < walltime:
        raise CECredentialError(
            f"{name}: the credential of {credential.identity} ends before a pilot of {walltime} would; its owner must"
            " renew it"
        )


def lost(submitting: bool, text: str) -> ComputingElementError:
    """The error where a request went out and no whole answer came; only a submission is then uncertain."""
    return SubmitUncertainError(text) if submitting else CEUnavailableError(text)


def retry_after_s(header: str) -> float:
    """The seconds in an HTTP header ``Retry-After``, within reason; dates are not read."""
    seconds = whole_number(header)
    return BUSY_RETRY_S if seconds is None else min(_LONGEST_RETRY_S, float(seconds))
