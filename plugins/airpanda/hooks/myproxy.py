"""The hook to a MyProxy server, and to the owners' own credentials that the worker may use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airpanda.core.clock import utcnow
from airpanda.core.errors import ConfigurationError
from airpanda.hooks.connections import OWNER, ConnectionHook

if TYPE_CHECKING:
    from airpanda.myproxy.client import MyProxyClient
    from airpanda.myproxy.values import CredentialInfo
    from airpanda.x509.credential import ProxyCredential


@dataclass(frozen=True)
class Repository:
    """A MyProxy server as one Connection describes it."""

    host: str
    port: int
    ca_dir: Path
    retriever_dn: str
    vomsdir: Path | None


class MyProxyHook(ConnectionHook):
    """A MyProxy server, seen by one payload owner at a time.

    The Connection (any type) has a host, a port (7512 by default) and as extra ``{"ca_dir": …, "retriever_dn": …}``,
    the DN of the pilots that may retrieve; and ``"vomsdir"`` where the site uses VOMS. An owner's certificate and key,
    or proxy, are named by the Connection ``owner_<name>`` with extra ``{"certificate_file": …, "key_file": …}`` or
    ``{"proxy_file": …}``; nothing secret is in a Connection.
    """

    conn_name_attr = "myproxy_conn_id"
    default_conn_name = "myproxy_default"
    conn_type = "generic"
    hook_name = "MyProxy"

    def __init__(self, myproxy_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.myproxy_conn_id = myproxy_conn_id
        self._repository: Repository | None = None

    @property
    def repository(self) -> Repository:
        """Raises:
        ConfigurationError: the Connection lacks something; names it.
        """
        if self._repository is None:
            self._repository = self._read(self.get_connection(self.myproxy_conn_id))
        return self._repository

    def client(self, credential: ProxyCredential) -> MyProxyClient:
        """A client that acts as this credential. Raises as ``repository``."""
        from airpanda.myproxy.client import MyProxyClient

        there = self.repository
        return MyProxyClient(there.host, there.port, ca_dir=there.ca_dir, credential=credential)

    def owner_proxy(self, owner: str, *, lifetime: timedelta) -> ProxyCredential:
        """A fresh proxy of this owner, made here.

        Raises:
            ConfigurationError: there is no Connection ``owner_<owner>``, or it names neither certificate and key nor
                proxy.
            CredentialError: what it names is unreadable, expired or not protected.
        """
        from airpanda.x509.proxy import create_proxy

        conn_id = f"{OWNER}{owner}"
        issuer = credential_of(conn_id, self.get_connection(conn_id))
        return create_proxy(issuer, lifetime=lifetime, now=utcnow())

    def info(self, owner: str) -> tuple[CredentialInfo, ...]:
        """What the server holds of this owner. Raises as the others, and MyProxy's own errors."""
        proxy = self.owner_proxy(owner, lifetime=timedelta(hours=1))
        return self.client(proxy).info(proxy.identity)

    def _read(self, connection: Any) -> Repository:
        extra = connection.extra_dejson
        missing = [name for name in ("ca_dir", "retriever_dn") if not extra.get(name)]
        if missing or not connection.host:
            raise ConfigurationError(
                f"Connection {self.myproxy_conn_id!r} needs a host and, in its extra, ca_dir and retriever_dn"
            )
        return Repository(
            host=connection.host,
            port=connection.port or 7512,
            ca_dir=Path(extra["ca_dir"]),
            retriever_dn=extra["retriever_dn"],
            vomsdir=Path(extra["vomsdir"]) if extra.get("vomsdir") else None,
        )


def credential_of(conn_id: str, connection: Any) -> ProxyCredential:
    """What a Connection's extra names: ``proxy_file``, or ``certificate_file`` and ``key_file``, of the worker.

    Raises:
        ConfigurationError: it names neither.
        CredentialError: what it names is unreadable or not protected.
    """
    from airpanda.x509.credential import ProxyCredential

    extra = connection.extra_dejson
    if "proxy_file" in extra:
        return ProxyCredential.load(Path(extra["proxy_file"]))
    if "certificate_file" in extra and "key_file" in extra:
        return ProxyCredential.from_files(Path(extra["certificate_file"]), Path(extra["key_file"]))
    raise ConfigurationError(
        f"Connection {conn_id!r} must name certificate_file and key_file, or proxy_file, in its extra"
    )
