"""What can go wrong with MyProxy, by who must act.

::

    RequestError
    └── MyProxyRequestError         we sent what the server cannot take
    CredentialError
    └── MyProxyRefusedError         the server says no; ``lines`` are its own words
        ├── WrongPassphraseError
        ├── CredentialMissingError
        ├── NotOwnerError           the name belongs to another DN
        ├── PolicyDeniedError       ``policy`` names which one
        ├── PassphraseNeededError   neither passphrase nor trust nor an old proxy
        ├── CredentialLockedError
        └── UnfitCredentialError    what came back is not what was asked for
    ServiceError
    └── MyProxyServiceError
        ├── UnreachableError        down or slow: transient
        │   └── ClosedEarlyError    closed in the middle
        ├── UntrustedServerError    its certificate does not fit: the site must act
        └── ProtocolViolationError  it does not speak MyProxy
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from airpanda.core.errors import AirpandaError, CredentialError, RequestError, ServiceError


class MyProxyRequestError(RequestError):
    """The server cannot take the request as it is."""

    code = "myproxy-request"


class MyProxyRefusedError(CredentialError):
    """The server refuses. ``lines`` are its ERROR lines, control characters removed."""

    code = "myproxy-refused"

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(f"{message} (server: {'; '.join(lines)})" if lines else message)
        self.lines = tuple(lines)


class WrongPassphraseError(MyProxyRefusedError):
    """The passphrase does not open the credential."""

    code = "myproxy-passphrase"


class CredentialMissingError(MyProxyRefusedError):
    """No such credential, or none for this caller."""

    code = "myproxy-missing"


class NotOwnerError(MyProxyRefusedError):
    """The user name and credential name belong to another DN."""

    code = "myproxy-owner"


class PolicyDeniedError(MyProxyRefusedError):
    """A policy of the server or of the credential; ``policy`` is its name, such as ``authorized_retrievers``."""

    code = "myproxy-policy"

    def __init__(self, message: str, lines: Sequence[str] = (), *, policy: str = "") -> None:
        super().__init__(message, lines)
        self.policy = policy


class PassphraseNeededError(MyProxyRefusedError):
    """The caller gave no passphrase and is not trusted without one."""

    code = "myproxy-passphrase-needed"


class CredentialLockedError(MyProxyRefusedError):
    """The server's administrator has locked the credential."""

    code = "myproxy-locked"


class UnfitCredentialError(MyProxyRefusedError):
    """The server's answer is another person's, for another key, too short, or a chain that does not verify."""

    code = "myproxy-unfit"


class MyProxyServiceError(ServiceError):
    """The server failed."""

    code = "myproxy-service"


class UnreachableError(MyProxyServiceError):
    """Down, too slow, or closed before the end; the same call may succeed later."""

    code = "myproxy-unreachable"


class ClosedEarlyError(UnreachableError):
    """Closed before the end: perhaps a refusal whose words were lost on the way."""


class UntrustedServerError(MyProxyServiceError):
    """The server's certificate or name does not fit; a repeat does not help."""

    code = "myproxy-untrusted-server"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


class ProtocolViolationError(MyProxyServiceError):
    """The peer does not speak the protocol; a repeat does not help."""

    code = "myproxy-protocol"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


_POLICY = re.compile(r"\"?(\w*(?:retriev|renew|accepted_cred)\w*)\"? policy", re.IGNORECASE)
# A server names every door it has tried; the first of these is the one that the caller meant to use.
_TELLING = ("accepted_credentials", "authorized_key_retrievers", "authorized_retrievers", "authorized_renewers")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")


def clean(lines: Sequence[str]) -> tuple[str, ...]:
    """Lines of a peer, fit for a log: one line each, no control characters, bounded."""
    return tuple(_UNPRINTABLE.sub(" ", line).strip()[:300] for line in lines[:10])


def refusal(lines: Sequence[str]) -> AirpandaError:
    """The typed error for a server's ERROR lines; unknown words give the general refusal.

    Source: gridcf/gct, myproxy/source (myproxy_server.c, myproxy_creds.c, ssl_utils.c).
    """
    words = clean(lines)
    text = " ".join(words).lower()
    if "invalid credential passphrase" in text or "invalid pass phrase" in text or "bad password" in text:
        return WrongPassphraseError("the passphrase is wrong; the owner must stage the credential again", words)
    if "not owned by" in text or "does not own" in text:
        return NotOwnerError("another DN owns this name; its owner must destroy it, or choose another name", words)
    if "policy" in text:
        name = _most_telling(_POLICY.findall(text))
        who = "the server's administrator or the credential's owner must allow it"
        return PolicyDeniedError(f"the policy {name or '(unnamed)'} forbids this; {who}", words, policy=name)
    if "no credentials" in text or "credentials do not exist" in text or "credential does not exist" in text:
        return CredentialMissingError("there is no such credential; its owner must stage it again", words)
    if "locked" in text:
        return CredentialLockedError("the credential is locked; ask the server's administrator", words)
    if "pass phrase too short" in text or "error parsing request" in text or "unknown command" in text:
        return MyProxyRequestError(f"the server cannot take the request: {'; '.join(words)}")
    if "no passphrase" in text or "authentication failed" in text:
        return PassphraseNeededError("a passphrase, a trusted DN or an old proxy is needed and was not given", words)
    return MyProxyRefusedError("the server refuses", words)


def _most_telling(policies: Sequence[str]) -> str:
    return next((name for name in _TELLING if name in policies), policies[0] if policies else "")
