"""Stage the payload owner's proxy in MyProxy, and take it away again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from pydantic import SecretStr

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import AirpandaError
from airpanda.hooks import calls
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.myproxy import MyProxyHook
from airpanda.hooks.panda import PandaHook
from airpanda.messages import ConsentGiven, CredentialRegistration, CredentialScope, CredentialView, StagedQuery

if TYPE_CHECKING:
    from airpanda.myproxy.client import MyProxyClient
    from airpanda.x509.credential import ProxyCredential


class MyProxyStageOperator(BaseOperator):
    """Stages a proxy of ``payload_owner`` in MyProxy for pilots to retrieve, and registers where it lies.

    The server and the owner's certificate are named by Connections, see
    :class:`airpanda.hooks.myproxy.MyProxyHook`. VOMS attributes that verify are registered with the credential.

    A proxy key made here never leaves this process unencrypted: it is stored under a fresh random name,
    encrypted with a fresh 256-bit passphrase, retrievable only by the Connection's ``retriever_dn``. The passphrase
    goes to the dispatcher's registry, encrypted there; XCom holds
    ``{"credential_id", "owner", "owner_dn", "expires_at"}``.

    Consent: whoever lets Airflow use a certificate lets this task use what is staged from it. So the registration says
    that the client of ``panda_conn_id``, and no other, may submit jobs with this one credential, to ``panda_queues``.

    Verified are the chain with its revocation lists before anything is sent, and by INFO afterwards that the server
    holds end and policies as meant. A GET would prove more, but nobody here is allowed one: only pilots retrieve.

    A retry or clear of the task returns what an earlier try staged, if MyProxy still holds it as meant for at least
    half of ``lifetime``; otherwise it stages afresh and destroys what the earlier try has left.

    Args:
        payload_owner: short name of the owner (templated).
        lifetime: how long the staged credential lasts; cut to the end of the owner's certificate.
        scope: what the credential serves: one ``job``, one panda ``task``, or everything of the ``user``.
        panda_queues: where its jobs may run; every queue by default.
    """

    template_fields: Sequence[str] = ("payload_owner", "panda_queues")
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        payload_owner: str,
        lifetime: timedelta = timedelta(days=2),
        scope: str = "task",
        panda_queues: Sequence[str] = ("*",),
        myproxy_conn_id: str = MyProxyHook.default_conn_name,
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.payload_owner = payload_owner
        self.lifetime = lifetime
        self.scope = scope
        self.panda_queues = panda_queues
        self.myproxy_conn_id = myproxy_conn_id
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> dict[str, Any]:
        """Reuse, or stage, verify and register.

        Raises:
            CredentialError: the owner's credential is expired or refused; the owner must act.
            ConfigurationError: a Connection lacks something; names it.
            ServiceError: MyProxy or the dispatcher cannot be reached.
        """
        from airpanda.x509.preflight import verified_fqans

        scope = CredentialScope(self.scope)
        hook, panda = MyProxyHook(self.myproxy_conn_id), PandaHook(self.panda_conn_id)
        proxy = hook.owner_proxy(self.payload_owner, lifetime=self.lifetime)
        there = hook.repository
        fqans = verified_fqans(proxy, ca_dir=there.ca_dir, vomsdir=there.vomsdir, now=utcnow())
        client = hook.client(proxy)
        query = StagedQuery(owner=self.payload_owner, owner_dn=proxy.identity, ti=task_instance_key(context))
        earlier = [view for view in panda.send(calls.staged(query)) if view.server == client.server]
        for view in earlier:
            if (view.scope, view.fqans) == (scope, fqans) and self._is_good(client, view, there.retriever_dn):
                self.log.info("an earlier try of this task has staged credential %d: it is used", view.credential_id)
                return _reference(view)
        fresh = self._stage(client, proxy, there.retriever_dn, fqans, scope, query, panda)
        for view in earlier:
            destroy(client, panda, view)
        return _reference(fresh)

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
        scope: CredentialScope,
        query: StagedQuery,
        panda: PandaHook,
    ) -> CredentialView:
        from airpanda.myproxy.staging import stage, unstage

        staged = stage(client, proxy, retriever_dn=retriever_dn, lifetime=self.lifetime)
        registration = CredentialRegistration(
            owner=self.payload_owner,
            owner_dn=proxy.identity,
            fqans=fqans,
            server=staged.server,
            username=staged.username,
            cred_name=staged.cred_name,
            passphrase=SecretStr(staged.passphrase.reveal()),
            retriever_dn=retriever_dn,
            expires_at=staged.expires_at,
            scope=scope,
            origin="operator",
            ti=query.ti,
            consent=ConsentGiven(queues=list(self.panda_queues)),
        )
        try:
            view = panda.send(calls.register_credential(registration))
        except AirpandaError:
            # Nobody will ever know its passphrase: what was staged must not stay behind.
            unstage(client, staged.username, staged.cred_name)
            raise
        self.log.info(
            "staged a proxy of %s at %s until %s (credential %d, retrievable only by %s)",
            view.owner_dn,
            view.server,
            to_wire(view.expires_at),
            view.credential_id,
            retriever_dn,
        )
        return view


class MyProxyDestroyOperator(BaseOperator):
    """Removes a staged credential from MyProxy and marks it destroyed; a repeat is no error.

    Args:
        credential: what :class:`MyProxyStageOperator` returned (its ``.output``).
    """

    template_fields: Sequence[str] = ("credential",)
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        credential: Any,
        myproxy_conn_id: str = MyProxyHook.default_conn_name,
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.credential = credential
        self.myproxy_conn_id = myproxy_conn_id
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> None:
        """Revoke, destroy, record it: no pilot gets what is about to vanish.

        Raises:
            CredentialError: MyProxy refuses; usually the credential belongs to another certificate.
            ServiceError: MyProxy or the dispatcher cannot be reached.
        """
        panda, hook = PandaHook(self.panda_conn_id), MyProxyHook(self.myproxy_conn_id)
        view = panda.send(calls.credential(int(self.credential["credential_id"])))
        if view.state == "destroyed":
            self.log.info("credential %d is destroyed already", view.credential_id)
            return
        destroy(hook.client(hook.owner_proxy(view.owner, lifetime=timedelta(hours=1))), panda, view)
        self.log.info("destroyed credential %d of %s", view.credential_id, view.owner_dn)


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


def _reference(view: CredentialView) -> dict[str, Any]:
    """What XCom may hold."""
    return {
        "credential_id": view.credential_id,
        "owner": view.owner,
        "owner_dn": view.owner_dn,
        "expires_at": to_wire(view.expires_at),
    }
