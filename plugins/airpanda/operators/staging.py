"""A staged credential for a task instance: the one that an earlier try has left, or a fresh one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import AirpandaError
from airpanda.hooks import calls
from airpanda.hooks.myproxy import MyProxyHook
from airpanda.hooks.panda import PandaHook
from airpanda.messages import (
    ConsentGiven,
    CredentialRegistration,
    CredentialScope,
    CredentialView,
    StagedQuery,
    TaskInstanceKey,
)

if TYPE_CHECKING:
    from airpanda.myproxy.client import MyProxyClient
    from airpanda.x509.credential import ProxyCredential


@dataclass(frozen=True)
class Staging:
    """How a credential of ``owner`` is staged; see ``MyProxyStageOperator``."""

    owner: str
    lifetime: timedelta
    scope: CredentialScope
    queues: Sequence[str]
    myproxy: MyProxyHook
    panda: PandaHook

    def obtain(self, ti: TaskInstanceKey, *, refused: Collection[int] = ()) -> CredentialView:
        """What an earlier try of ``ti`` staged, if it is still good and not among ``refused``; else a fresh one.

        Raises:
            CredentialError: the owner's credential is expired or refused; the owner must act.
            ConfigurationError: a Connection lacks something; names it.
            ServiceError: MyProxy or the dispatcher cannot be reached.
        """
        from airpanda.x509.preflight import verified_fqans

        proxy = self.myproxy.owner_proxy(self.owner, lifetime=self.lifetime)
        there = self.myproxy.repository
        fqans = verified_fqans(proxy, ca_dir=there.ca_dir, vomsdir=there.vomsdir, now=utcnow())
        client = self.myproxy.client(proxy)
        query = StagedQuery(owner=self.owner, owner_dn=proxy.identity, ti=ti)
        earlier = [view for view in self.panda.send(calls.staged(query)) if view.server == client.server]
        for view in earlier:
            fits = (view.scope, view.fqans) == (self.scope, fqans) and view.credential_id not in refused
            if fits and self._is_good(client, view, there.retriever_dn):
                self.panda.log.info(
                    "an earlier try of this task has staged credential %d: it is used", view.credential_id
                )
                return view
        fresh = self._stage(client, proxy, there.retriever_dn, fqans, ti)
        for view in earlier:
            destroy(client, self.panda, view)
        return fresh

    def _is_good(self, client: MyProxyClient, view: CredentialView, retriever_dn: str) -> bool:
        from airpanda.myproxy.errors import CredentialMissingError
        from airpanda.myproxy.staging import is_staged_for

        if view.expires_at < utcnow() + self.lifetime / 2:
            return False
        try:
            return is_staged_for(client.info_of(view.username, view.cred_name), retriever_dn, view.expires_at)
        except CredentialMissingError:
            return False

    def _stage(
        self,
        client: MyProxyClient,
        proxy: ProxyCredential,
        retriever_dn: str,
        fqans: list[str],
        ti: TaskInstanceKey,
    ) -> CredentialView:
        from airpanda.myproxy.staging import stage, unstage

        staged = stage(client, proxy, retriever_dn=retriever_dn, lifetime=self.lifetime)
        try:
            registration = CredentialRegistration(
                owner=self.owner,
                owner_dn=proxy.identity,
                fqans=fqans,
                server=staged.server,
                username=staged.username,
                cred_name=staged.cred_name,
                passphrase=SecretStr(staged.passphrase.reveal()),
                retriever_dn=retriever_dn,
                expires_at=staged.expires_at,
                scope=self.scope,
                origin="operator",
                ti=ti,
                consent=ConsentGiven(queues=list(self.queues)),
            )
            view = self.panda.send(calls.register_credential(registration))
        except (AirpandaError, ValueError):
            # Nobody will ever know its passphrase: what was staged must not stay behind.
            unstage(client, staged.username, staged.cred_name)
            raise
        self.panda.log.info(
            "staged a proxy of %s at %s until %s (credential %d, retrievable only by %s)",
            view.owner_dn,
            view.server,
            to_wire(view.expires_at),
            view.credential_id,
            retriever_dn,
        )
        return view


def destroy(client: MyProxyClient, panda: PandaHook, view: CredentialView) -> None:
    """End a credential here and there; one that MyProxy has lost already is no error."""
    from airpanda.myproxy.errors import CredentialMissingError
    from airpanda.myproxy.staging import unstage

    panda.send(calls.credential_revoked(view.credential_id))
    try:
        unstage(client, view.username, view.cred_name)
    except CredentialMissingError:
        panda.log.info("credential %d is no longer in MyProxy", view.credential_id)
    panda.send(calls.credential_destroyed(view.credential_id))


def reference(view: CredentialView) -> dict[str, Any]:
    """What XCom may hold of a credential."""
    return {
        "credential_id": view.credential_id,
        "owner": view.owner,
        "owner_dn": view.owner_dn,
        "expires_at": to_wire(view.expires_at),
    }
