"""The owner's proxy for one attempt: retrieved from MyProxy, checked against the job, kept in one 0600 file."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Callable, Protocol

from airpanda.core.errors import AirpandaError, CredentialError
from airpanda.myproxy.errors import MyProxyRefusedError, PassphraseNeededError, PolicyDeniedError
from airpanda.pilot import errors
from airpanda.pilot.errors import JobFault
from airpanda.pilot.wire import Credential, Job

MARGIN = timedelta(minutes=10)
_MAX_KEYS = 16


class OwnerProxy(Protocol):
    """What the pilot needs of a retrieved proxy; ``airpanda.x509.credential.ProxyCredential`` is one."""

    @property
    def identity(self) -> str: ...

    @property
    def not_after(self) -> datetime: ...

    def write(self, path: Path) -> None: ...


Retrieve = Callable[[Credential, timedelta], OwnerProxy]


def from_myproxy(
    pilot_proxy: str, ca_dir: str, *, at_once: int = 1, timeout: timedelta = timedelta(seconds=30)
) -> Retrieve:
    """The retrieval that authenticates to MyProxy with the pilot's own proxy and the lease's passphrase.

    ``at_once``: so many payloads may begin together; their keys are made ahead.
    """
    from airpanda.myproxy.client import MyProxyClient
    from airpanda.myproxy.keys import KeyPool
    from airpanda.x509.credential import ProxyCredential

    keys = KeyPool(size=max(2, min(at_once, _MAX_KEYS)))  # the next keys are made while payloads run
    keys.fill()

    def retrieve(pointer: Credential, lifetime: timedelta) -> OwnerProxy:
        try:
            own = ProxyCredential.load(Path(pilot_proxy))
        except CredentialError as error:  # read anew for each job: the site renews it
            raise JobFault(errors.OWN_PROXY, str(error)) from error
        host, port = pointer.address
        client = MyProxyClient(host, port, ca_dir=Path(ca_dir), credential=own, timeout=timeout, keys=keys)
        return client.get(pointer.username, pointer.passphrase, cred_name=pointer.cred_name, lifetime=lifetime)

    return retrieve


def fetch_owner_proxy(
    job: Job, retrieve: Retrieve, into: Path, now: Callable[[], datetime], *, at_least: timedelta
) -> OwnerProxy:
    """Write the owner's proxy to ``into`` if it is the owner's and lasts ``at_least`` so long.

    It is asked for the job's whole time; a server may grant less at once and more later, see ``renewal``.

    Raises:
        JobFault: refused, unreachable, somebody else's, or too short. Nothing is written then.
    """
    walltime = timedelta(seconds=job.spec.walltime_s)
    try:
        proxy = retrieve(job.credential, walltime + MARGIN)
        identity, not_after = proxy.identity, proxy.not_after
    except (PolicyDeniedError, PassphraseNeededError) as error:
        raise JobFault(errors.NOT_SERVED, str(error)) from error
    except MyProxyRefusedError as error:
        raise JobFault(errors.NO_PROXY, str(error)) from error
    except CredentialError as error:  # not the server's word: what this pilot authenticates with
        raise JobFault(errors.OWN_PROXY, str(error)) from error
    except JobFault:
        raise
    except AirpandaError as error:
        raise JobFault(errors.MYPROXY_DOWN, str(error)) from error
    if identity != job.owner_dn or job.credential.owner_dn != job.owner_dn:
        raise JobFault(errors.WRONG_PROXY, f"it names {identity!r}, the job belongs to {job.owner_dn!r}")
    if not_after < now() + at_least:
        raise JobFault(errors.SHORT_PROXY, f"it ends at {not_after:%Y-%m-%d %H:%M:%S} UTC")
    proxy.write(into)
    return proxy
