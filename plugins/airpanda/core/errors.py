"""All errors of airpanda: one branch for each party that can act.

::

    AirpandaError
    ├── RequestError            the caller must change the request            → HTTP 400/404/409/410/422
    │   ├── NotFoundError                                                     → 404
    │   │   └── GoneError           it was, and was removed after its time    → 410
    │   ├── ConflictError       the stored state does not allow it            → 409
    │   │   ├── InvalidTransitionError   a job status may not follow the stored one
    │   │   ├── ArchivedError            it may be looked at and is not changed any more
    │   │   └── StaleReportError         attempt or pilot no longer holds the lease
    │   ├── QueueOfflineError   the same request may succeed when the site is back
    │   └── ConfigurationError  a site's file or option is wrong; names file, line and key
    ├── NotAuthorisedError      the caller may not                            → 401/403
    ├── CredentialError         the payload owner must act                    → 409
    │   └── BannedError         no other credential of the owner helps
    ├── IdentitySwitchError     the site must act; the payload has not run    → pilot error 1226
    └── ServiceError            a peer failed; ``transient`` says whether a repeat may help → 503

An error's text is one sentence for a person: what happened, who must act, what to do. It never holds a
secret. A payload that fails is an outcome, not an exception.
"""

from __future__ import annotations

from typing import Optional


class AirpandaError(Exception):
    """The root. ``code`` is stable and machine readable; the message is for people."""

    code = "airpanda"


class RequestError(AirpandaError):
    """The caller must change the request."""

    code = "request"


class NotFoundError(RequestError):
    """What the request names does not exist, or not for this caller."""

    code = "not-found"


class GoneError(NotFoundError):
    """What the request names was there, and has been removed after its time."""

    code = "gone"


class ConflictError(RequestError):
    """The stored state does not allow the request."""

    code = "conflict"


class InvalidTransitionError(ConflictError):
    """The reported job status may not follow the stored one."""

    code = "invalid-transition"


class ArchivedError(ConflictError):
    """What the request would change is in the archive, or on its way there."""

    code = "archived"


class StaleReportError(ConflictError):
    """The attempt was fenced off or belongs to another pilot: the reporter must stop its payload."""

    code = "stale-report"


class QueueOfflineError(RequestError):
    """A queue that could take the jobs is offline, and no other is left."""

    code = "queue-offline"


class ConfigurationError(RequestError):
    """A configuration file or option is wrong; the message names file, line and key where known."""

    code = "configuration"


class NotAuthorisedError(AirpandaError):
    """The caller is not known (``authenticated`` false) or may not do this."""

    code = "not-authorised"

    def __init__(self, message: str, *, authenticated: bool = True) -> None:
        super().__init__(message)
        self.authenticated = authenticated


class CredentialError(AirpandaError):
    """The owner of a credential must act: expired, missing, wrong passphrase, refused by policy."""

    code = "credential"


class BannedError(CredentialError):
    """The owner is banned: only the operators of the service can lift that."""

    code = "banned"


class IdentitySwitchError(AirpandaError):
    """The switch to the owner's account failed: the payload has not run and must not run otherwise.

    ``exit_code`` is the launcher's own (201, 202, 203, 126) where there was one.
    """

    code = "identity-switch"

    def __init__(self, message: str, *, exit_code: Optional[int] = None, transient: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.transient = transient


class ServiceError(AirpandaError):
    """A peer failed. ``transient`` says whether the same call may succeed later."""

    code = "service"

    def __init__(self, message: str, *, transient: bool = True, retry_after_s: Optional[float] = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.retry_after_s = retry_after_s
