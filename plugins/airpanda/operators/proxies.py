"""Stage the payload owner's proxy in MyProxy, and take it away again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator

from airpanda.hooks import calls
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.myproxy import MyProxyHook
from airpanda.hooks.panda import PandaHook
from airpanda.messages import CredentialScope
from airpanda.operators.checks import demand_names
from airpanda.operators.staging import Staging, destroy, reference

_FIELDS = ("payload_owner", "panda_queues")


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
        panda_queues: a queue, or several, where its jobs may run; every queue by default.
    """

    template_fields: Sequence[str] = _FIELDS
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        payload_owner: str,
        lifetime: timedelta = timedelta(days=2),
        scope: str = "task",
        panda_queues: str | Sequence[str] = ("*",),
        myproxy_conn_id: str = MyProxyHook.default_conn_name,
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        demand_names(payload_owner, panda_queues, fields=_FIELDS)
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
            ValueError: owner or queues, as rendered, are no names.
        """
        demand_names(self.payload_owner, self.panda_queues, fields=_FIELDS)
        staging = Staging(
            owner=self.payload_owner,
            lifetime=self.lifetime,
            scope=CredentialScope(self.scope),
            queues=[self.panda_queues] if isinstance(self.panda_queues, str) else self.panda_queues,
            myproxy=MyProxyHook(self.myproxy_conn_id),
            panda=PandaHook(self.panda_conn_id),
        )
        return reference(staging.obtain(task_instance_key(context)))


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
