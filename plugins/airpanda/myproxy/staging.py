"""Staging a user's proxy for exactly one pilot identity and one holder of a random passphrase.

The scheme: the owner makes a proxy here with a fresh key, encrypts the key with 256 random bits, and stores it
under 128 random bits of name. The server lets only the named pilot DN retrieve, and only with the passphrase:
the pilot's certificate alone gets nothing, and neither does the passphrase alone.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Optional

from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError, RequestError
from airpanda.core.identity import check_dn
from airpanda.core.secret import Secret
from airpanda.myproxy import policy, values
from airpanda.myproxy.client import MyProxyClient
from airpanda.myproxy.errors import UnfitCredentialError
from airpanda.myproxy.values import CredentialInfo, Policies
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

_CLOCK_TOLERANCE = timedelta(seconds=2)


@dataclass(frozen=True)
class StagedCredential:
    """What a retriever needs besides its own certificate.

    ``expires_at`` is when the staged proxy ends. Store the passphrase encrypted, and elsewhere than its key.
    """

    server: str
    username: str
    cred_name: str
    passphrase: Secret[str] = field(repr=False, compare=False)
    expires_at: datetime


def stage(
    client: MyProxyClient,
    proxy: ProxyCredential,
    *,
    retriever_dn: str,
    lifetime: timedelta,
    retrieval_lifetime: Optional[timedelta] = None,
) -> StagedCredential:
    """Stage a fresh proxy of ``proxy``'s owner and verify by INFO that the server has it as meant.

    A repeat stages another one under another name. When anything fails, what was stored is destroyed again.

    Args:
        client: authenticated as the same owner.
        retriever_dn: the one DN that may retrieve, taken literally.
        lifetime: of the staged proxy, cut to that of ``proxy``.
        retrieval_lifetime: the longest proxy the server may give out; ``lifetime`` by default.

    Raises:
        RequestError: a DN or lifetime that cannot be used.
        CredentialError: ``proxy`` has expired, or the server refuses.
        UnfitCredentialError: the server did not keep the policies as sent.
        MyProxyServiceError: the server failed.
    """
    policies = Policies(retriever=policy.exactly(retriever_dn))
    username = check_dn(proxy.identity)
    if client.credential is None or client.credential.identity != username:
        raise RequestError(f"the MyProxy client must act as {username}, whose proxy is to be staged")
    cred_name = secrets.token_hex(16)
    passphrase = Secret.random()
    staged = create_proxy(proxy, lifetime=lifetime, now=utcnow())
    expected = CredentialInfo(cred_name, username, staged.not_before, staged.not_after, policies)
    limit = retrieval_lifetime or lifetime
    values.seconds(limit)
    try:
        client.store(username, staged, passphrase, cred_name=cred_name, retrieval_lifetime=limit, policies=policies)
        _compare(client.info_of(username, cred_name), expected)
    except BaseException as error:
        _undo(client, username, cred_name, error)
        raise
    return StagedCredential(client.server, username, cred_name, passphrase, staged.not_after)


def is_staged_for(found: CredentialInfo, retriever_dn: str, not_after: datetime) -> bool:
    """Whether what a server reports is still what ``stage`` has left there: its end, its policies, no lock."""
    same_end = abs(found.not_after - not_after) <= _CLOCK_TOLERANCE
    return same_end and found.locked is None and found.policies == Policies(retriever=policy.exactly(retriever_dn))


def unstage(client: MyProxyClient, username: str, cred_name: str) -> None:
    """Destroy a staged credential.

    Raises:
        CredentialMissingError: it is gone already.
    """
    client.destroy(username, cred_name=cred_name)


def _compare(found: CredentialInfo, expected: CredentialInfo) -> None:
    """Refuse whatever a server has stored otherwise than sent: a lost policy is an open door."""
    if found.policies != expected.policies:
        raise UnfitCredentialError("the server did not keep the policies of the staged credential; tell its operator")
    if abs(found.not_after - expected.not_after) > _CLOCK_TOLERANCE or found.locked is not None:
        raise UnfitCredentialError("the server reports another end, or a lock, for the staged credential")


def _undo(client: MyProxyClient, username: str, cred_name: str, cause: BaseException) -> None:
    """Leave nothing half-way: also after a broken connection, when nobody knows whether STORE came through.

    The first error matters more than one of this; the name is random, so nothing else can be hit.
    """
    try:
        client.destroy(username, cred_name=cred_name)
    except AirpandaError as error:
        error.__context__ = cause
