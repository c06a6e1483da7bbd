"""Computing elements as Airflow sees them: a queue's description and, where it has a host, a Connection's login."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import conf

from airpanda.computing.ces import ArcCE, BatchCE, GramCE, KubernetesCE, ScheddCE
from airpanda.computing.elements import ComputingElement, make_element
from airpanda.computing.queues import PandaQueue
from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from airpanda.hooks import calls
from airpanda.hooks.connections import ConnectionHook
from airpanda.hooks.myproxy import credential_of
from airpanda.hooks.panda import PandaHook
from airpanda.x509.proxy import create_proxy

if TYPE_CHECKING:
    from airpanda.computing.ssh import SshLogin
    from airpanda.x509.credential import ProxyCredential


class ComputingElementHook(ConnectionHook):
    """The computing elements of one PanDA queue, for tasks of one's own: what they run, how busy they are, their logs.

    The dispatcher of ``panda_conn_id`` tells what the queue's file says; its client token must be one that may send
    pilots to the queue. The Connection that the file names as ``conn_id`` has the login or the robot's credential.

    >>> with ComputingElementHook("DEMO").element() as element:
    ...     element.find(tag)
    """

    conn_name_attr = "panda_conn_id"
    default_conn_name = PandaHook.default_conn_name
    hook_name = "PanDA computing element"

    def __init__(self, panda_queue: str, panda_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.panda_queue, self.panda_conn_id = panda_queue, panda_conn_id

    def queue(self) -> PandaQueue:
        """What the queue's file says now.

        Raises:
            AirpandaError: the dispatcher refuses, does not know the queue, or does not answer.
        """
        return PandaQueue.from_wire(PandaHook(self.panda_conn_id).send(calls.factory(self.panda_queue)).queue)

    def get_conn(self, ce: str = "") -> ComputingElement:
        """One of the queue's elements, by its name in the file; the caller closes it. Empty: that of ``[ce]``.

        Raises as ``queue`` and ``element_of``.
        """
        return element_of(self.queue().at(ce), wrapper_path())

    @contextmanager
    def element(self, ce: str = "") -> Iterator[ComputingElement]:
        """The same, closed at the end."""
        with closing(self.get_conn(ce)) as element:
            yield element


def element_of(queue: PandaQueue, wrapper: Path) -> ComputingElement:
    """The queue's computing element, with the login or the robot's credential that its Connection names.

    Raises:
        ComputingElementError: the wrapper cannot be read, or the Connection has nothing to log in with.
        ConfigurationError: the Connection names no credential.
        CredentialError: what it names is unreadable or not protected.
    """
    if isinstance(queue.ce, (ArcCE, GramCE)):
        return make_element(queue, wrapper, credential=robot_credential(queue.ce.conn_id))
    if isinstance(queue.ce, (KubernetesCE, ScheddCE)):
        return make_element(queue, wrapper, token=_secret(ConnectionHook.get_connection(queue.ce.conn_id).password))
    if isinstance(queue.ce, BatchCE) and queue.ce.host:
        return make_element(queue, wrapper, login=ssh_login(queue.ce.conn_id))
    return make_element(queue, wrapper)


def wrapper_path() -> Path:
    """The file that starts pilots: ``[airpanda] include_dir``, ``pilot/wrapper.sh``."""
    return Path(conf.get("airpanda", "include_dir"), "pilot", "wrapper.sh")


def ssh_login(conn_id: str) -> SshLogin:
    """The login of a Connection, of any type.

    Its login is the user; its password, or in its extra ``private_key`` (text), ``key_file`` (path on the worker),
    ``private_key_passphrase`` and ``allow_agent`` say with what. The extra's names are those of Airflow's SSH provider.

    Raises:
        CECredentialError: it has none of these.
    """
    from airpanda.computing.ssh import SshLogin  # paramiko is slow to import, and DAG files are parsed often

    connection = ConnectionHook.get_connection(conn_id)
    extra = connection.extra_dejson
    return SshLogin(
        user=connection.login or "",
        password=_secret(connection.password),
        private_key=_secret(extra.get("private_key")),
        key_file=Path(extra["key_file"]) if extra.get("key_file") else None,
        passphrase=_secret(extra.get("private_key_passphrase")),
        use_agent=str(extra.get("allow_agent", "")).lower() == "true",
    )


def robot_credential(conn_id: str) -> ProxyCredential:
    """The robot's certificate with its key, or its proxy, as owners' Connections name them.

    Raises:
        ConfigurationError: the Connection names none.
        CredentialError: what it names is unreadable or not protected.
    """
    return credential_of(conn_id, ConnectionHook.get_connection(conn_id))


def pilots_proxy(conn_id: str, lifetime: timedelta) -> ProxyCredential:
    """A fresh proxy of the robot that a Connection names. Raises as ``robot_credential``."""
    return create_proxy(robot_credential(conn_id), lifetime=lifetime, now=utcnow())


def _secret(text: str | None) -> Secret[str] | None:
    return Secret(text) if text else None
