"""Stage the payload owner's proxy in MyProxy, and take it away again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, BaseOperator
from pydantic import SecretStr

from airpanda.core.clock import to_wire, utcnow
from airpanda.core.errors import AirpandaError, ConfigurationError
from airpanda.hooks import calls
from airpanda.hooks.context import task_instance_key
from airpanda.hooks.panda import PandaHook
from airpanda.messages import CredentialRegistration, CredentialScope

if TYPE_CHECKING:
    from airpanda.myproxy.client import MyProxyClient
    from airpanda.x509.credential import ProxyCredential


class MyProxyStageOperator(BaseOperator):
    """Stages a fresh proxy of ``payload_owner`` in MyProxy for pilots to retrieve, and registers where it lies.

    The owner's certificate and key, or an existing proxy, are named by the Airflow Connection
    ``owner_<payload_owner>`` with extra ``{"certificate_file": …, "key_file": …}`` or ``{"proxy_file": …}``. The
    MyProxy server is the Connection ``myproxy_conn_id`` with host, port and extra ``{"ca_dir": …, "retriever_dn": …}``,
    and ``"vomsdir"`` where the site uses VOMS: verified attributes are registered with the credential.

    A proxy key made here never leaves this process unencrypted: it is stored under a fresh random name,
    encrypted with a fresh 256-bit passphrase, retrievable only by ``retriever_dn``. The passphrase goes to the
    dispatcher's registry, encrypted there; XCom holds ``{"credential_id", "owner", "owner_dn", "expires_at"}``.

    A repeat stages anew and changes nothing of what was staged before.

    Args:
        payload_owner: short name of the owner (templated).
        lifetime: how long the staged credential lasts; cut to the end of the owner's certificate.
        scope: what the credential serves, ``job``, ``task`` or ``user``.
    """

    template_fields: Sequence[str] = ("payload_owner",)
    ui_color = "#e8dff5"

    def __init__(
        self,
        *,
        payload_owner: str,
        lifetime: timedelta = timedelta(days=2),
        scope: str = "task",
        myproxy_conn_id: str = "myproxy_default",
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.payload_owner = payload_owner
        self.lifetime = lifetime
        self.scope = scope
        self.myproxy_conn_id = myproxy_conn_id
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> dict[str, Any]:
        """Stage, verify, register.

        Raises:
            CredentialError: the owner's credential is expired or refused; the owner must act.
            ConfigurationError: a Connection lacks something; names it.
            ServiceError: MyProxy or the dispatcher cannot be reached.
        """
        from airpanda.myproxy.staging import stage, unstage

        scope = CredentialScope(self.scope)
        proxy = owner_proxy(f"owner_{self.payload_owner}", lifetime=self.lifetime)
        there = _Repository.of(self.myproxy_conn_id, proxy)
        fqans = verified_fqans(proxy, ca_dir=there.ca_dir, vomsdir=there.vomsdir)
        staged = stage(there.client, proxy, retriever_dn=there.retriever_dn, lifetime=self.lifetime)
        registration = CredentialRegistration(
            owner=self.payload_owner,
            owner_dn=proxy.identity,
            fqans=fqans,
            server=staged.server,
            username=staged.username,
            cred_name=staged.cred_name,
            passphrase=SecretStr(staged.passphrase.reveal()),
            retriever_dn=there.retriever_dn,
            expires_at=staged.expires_at,
            scope=scope,
            origin="operator",
            ti=task_instance_key(context),
        )
        try:
            view = PandaHook(self.panda_conn_id).send(calls.register_credential(registration))
        except AirpandaError:
            # Nobody will ever know its passphrase: what was staged must not stay behind.
            unstage(there.client, staged.username, staged.cred_name)
            raise
        self.log.info(
            "staged a proxy of %s at %s until %s (credential %d, retrievable only by %s)",
            view.owner_dn,
            view.server,
            to_wire(view.expires_at),
            view.credential_id,
            there.retriever_dn,
        )
        return {
            "credential_id": view.credential_id,
            "owner": view.owner,
            "owner_dn": view.owner_dn,
            "expires_at": to_wire(view.expires_at),
        }


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
        myproxy_conn_id: str = "myproxy_default",
        panda_conn_id: str = PandaHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.credential = credential
        self.myproxy_conn_id = myproxy_conn_id
        self.panda_conn_id = panda_conn_id

    def execute(self, context: Any) -> None:
        """Destroy, then record it.

        Raises:
            CredentialError: MyProxy refuses; usually the credential belongs to another certificate.
            ServiceError: MyProxy or the dispatcher cannot be reached.
        """
        from airpanda.myproxy.errors import CredentialMissingError
        from airpanda.myproxy.staging import unstage

        hook = PandaHook(self.panda_conn_id)
        view = hook.send(calls.credential(int(self.credential["credential_id"])))
        if view.state == "destroyed":
            self.log.info("credential %d is destroyed already", view.credential_id)
            return
        proxy = owner_proxy(f"owner_{view.owner}", lifetime=timedelta(hours=1))
        there = _Repository.of(self.myproxy_conn_id, proxy)
        try:
            unstage(there.client, view.username, view.cred_name)
        except CredentialMissingError:
            self.log.info("credential %d is no longer in MyProxy", view.credential_id)
        hook.send(calls.credential_destroyed(view.credential_id))
        self.log.info("destroyed credential %d of %s", view.credential_id, view.owner_dn)


def owner_proxy(conn_id: str, *, lifetime: timedelta) -> ProxyCredential:
    """A fresh proxy of the owner whose certificate, key or proxy the Connection names.

    Raises:
        ConfigurationError: the Connection names neither.
        CredentialError: what it names is unreadable, expired or not protected.
    """
    from airpanda.x509.credential import ProxyCredential
    from airpanda.x509.proxy import create_proxy

    extra = BaseHook.get_connection(conn_id).extra_dejson
    if "proxy_file" in extra:
        issuer = ProxyCredential.load(Path(extra["proxy_file"]))
    elif "certificate_file" in extra and "key_file" in extra:
        issuer = ProxyCredential.from_files(Path(extra["certificate_file"]), Path(extra["key_file"]))
    else:
        raise ConfigurationError(
            f"Connection {conn_id!r} must name certificate_file and key_file, or proxy_file, in its extra"
        )
    return create_proxy(issuer, lifetime=lifetime, now=utcnow())


@dataclass(frozen=True)
class _Repository:
    """A MyProxy server seen by one owner, and what the site trusts."""

    client: MyProxyClient
    retriever_dn: str
    ca_dir: Path
    vomsdir: Path | None

    @classmethod
    def of(cls, conn_id: str, proxy: ProxyCredential) -> _Repository:
        from airpanda.myproxy.client import MyProxyClient

        connection = BaseHook.get_connection(conn_id)
        extra = connection.extra_dejson
        missing = [name for name in ("ca_dir", "retriever_dn") if not extra.get(name)]
        if missing or not connection.host:
            raise ConfigurationError(f"Connection {conn_id!r} needs a host and, in its extra, ca_dir and retriever_dn")
        ca_dir = Path(extra["ca_dir"])
        client = MyProxyClient(connection.host, connection.port or 7512, ca_dir=ca_dir, credential=proxy)
        return cls(client, extra["retriever_dn"], ca_dir, Path(extra["vomsdir"]) if extra.get("vomsdir") else None)


def verified_fqans(proxy: ProxyCredential, *, ca_dir: Path, vomsdir: Path | None) -> list[str]:
    """The VOMS attributes of a proxy, primary first; none where the site names no ``vomsdir``.

    Raises:
        CredentialError: the chain or an attribute certificate does not verify; the owner must renew it.
    """
    from airpanda.x509.chain import verify_chain
    from airpanda.x509.trust import TrustStore
    from airpanda.x509.voms import VomsDirectory, verify_attributes

    trust, now = TrustStore.from_directory(ca_dir), utcnow()
    verify_chain(proxy.certificates, trust=trust, now=now)
    if vomsdir is None:
        return []
    directory = VomsDirectory.from_directory(vomsdir)
    found = verify_attributes(proxy.certificates, vomsdir=directory, trust=trust, now=now)
    return [str(fqan) for attributes in found for fqan in attributes.fqans]
