"""The kinds of computing elements that a queue file may name, and what the keys of each mean.

A value that cannot be is a ``ValueError`` that begins with its key; whoever reads the file adds where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,249}")


def positive(key: str, value: int) -> None:
    """Raises: ValueError: the key's number is not more than 0."""
    if value <= 0:
        raise ValueError(f"{key} = {value} must be more than 0")


def absolute(key: str, value: str, *, optional: bool = False, on: str = "the worker node") -> None:
    """Raises: ValueError: the key's value is no absolute path; ``on`` says whose it would be."""
    if not (optional and value == "") and not value.startswith("/"):
        raise ValueError(f"{key} = {value!r} must be an absolute path on {on}")


def _prefix(key: str, argv: Sequence[str]) -> None:
    if argv and not argv[0].startswith("/"):
        raise ValueError(f"{key} = {argv[0]!r}... must begin with an absolute path")


def _https(key: str, value: str, form: str) -> None:
    url = urlsplit(value)
    if url.scheme != "https" or not url.hostname or url.query or url.fragment or "@" in url.netloc:
        raise ValueError(f"{key} = {value!r} must be {form}")


def _host_and_port(key: str, value: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?", value) is None:
        raise ValueError(f"{key} = {value!r} must be host or host:port")


@dataclass(frozen=True)
class LocalCE:
    """Pilots as processes of ``account``, on the node that the argv prefix ``enter`` reaches (empty: this machine)."""

    kind: str
    directory: str
    enter: tuple[str, ...] = ()
    account: str = ""
    max_pilots: int = 8

    def __post_init__(self) -> None:
        absolute("directory", self.directory)
        positive("max_pilots", self.max_pilots)
        _prefix("enter", self.enter)


@dataclass(frozen=True)
class BatchCE:
    """A batch system, reached from this machine (through the argv prefix ``enter``) or by SSH (``host``).

    ``directory`` holds the pilots' directories; submit host and worker nodes share it. ``scratch`` is where pilots
    make sandboxes on the node, passable for payload accounts; empty: beside their directories. ``options`` are
    further arguments of the submit command. ``conn_id`` is the Airflow connection with the login for ``host``, and
    ``known_hosts`` a file of this machine with the host's key.
    """

    kind: str
    directory: str
    host: str = ""
    port: int = 22
    user: str = ""
    known_hosts: str = ""
    conn_id: str = ""
    enter: tuple[str, ...] = ()
    partition: str = ""
    options: tuple[str, ...] = ()
    scratch: str = ""
    max_pilots: int = 1000

    def __post_init__(self) -> None:
        absolute("directory", self.directory)
        absolute("scratch", self.scratch, optional=True)
        positive("max_pilots", self.max_pilots)
        if not 0 < self.port < 65536:
            raise ValueError(f"port = {self.port} must be between 1 and 65535")
        if self.host and (re.fullmatch(r"[A-Za-z0-9.:-]+", self.host) is None or self.host.startswith("-")):
            raise ValueError(f"host = {self.host!r} must be a host name or an address")
        if self.host and self.enter:
            raise ValueError("enter is for this machine only; with host it has no use")
        if self.host and not (self.known_hosts.startswith("/") and self.conn_id):
            raise ValueError(
                "host needs conn_id (who logs in) and known_hosts (an absolute path): no host is trusted unseen"
            )
        _prefix("enter", self.enter)
        if any("\n" in word for word in (self.directory, self.scratch, self.partition, *self.options)):
            raise ValueError("options, directory, scratch and partition must not hold line breaks")


@dataclass(frozen=True)
class ArcCE:
    """An ARC CE, reached by its REST interface at ``url`` (``https://host[:port]/arex``).

    ``conn_id`` is the Airflow connection that names the robot's certificate or proxy, and ``ca_dir`` the directory of
    this machine with the only CAs that the CE's certificate may come from. ``queue`` is the CE's; empty: its default.
    ``scratch`` is where pilots make sandboxes on the node, passable for payload accounts; empty: in the session
    directory. ``max_pilots``: waiting and running ones of the robot, of all its queues at this CE. ``delegation_s``:
    how long the proxy lasts that the pilots get; it must cover waiting and running.
    """

    kind: str
    url: str
    ca_dir: str
    conn_id: str = ""
    queue: str = ""
    scratch: str = ""
    max_pilots: int = 1000
    delegation_s: int = 4 * 86400

    def __post_init__(self) -> None:
        _https("url", self.url, "https://host[:port]/path")
        absolute("ca_dir", self.ca_dir, on="this machine")
        if self.queue and NAME.fullmatch(self.queue) is None:
            raise ValueError(f"queue = {self.queue!r} must be letters, digits and ._:+- only")
        absolute("scratch", self.scratch, optional=True)
        positive("max_pilots", self.max_pilots)
        positive("delegation_s", self.delegation_s)


@dataclass(frozen=True)
class GramCE:
    """A GRAM5 CE, reached by ``globusrun`` at the gatekeeper ``contact`` (``host[:port]``).

    ``conn_id`` is the Airflow connection that names the robot's certificate or proxy, and ``ca_dir`` the directory of
    this machine with the CAs that the gatekeeper's certificate may come from; ``subject`` is its DN where that is not
    the host's. ``service`` runs the pilots, ``fork_service`` small programs on the CE itself. ``directory`` holds the
    pilots' directories; the CE and its worker nodes share it. ``rsl`` are further relations of a pilot's job, such as
    ``(host_count=1)``. ``ports`` (``low,high``) and ``callback_host``: where the CE reaches this machine. ``queue``,
    ``scratch`` and ``max_pilots`` as for ARC.
    """

    kind: str
    contact: str
    ca_dir: str
    directory: str
    conn_id: str = ""
    subject: str = ""
    service: str = "jobmanager"
    fork_service: str = "jobmanager-fork"
    queue: str = ""
    project: str = ""
    rsl: tuple[str, ...] = ()
    ports: str = ""
    callback_host: str = ""
    scratch: str = ""
    max_pilots: int = 1000

    def __post_init__(self) -> None:
        _host_and_port("contact", self.contact)
        absolute("ca_dir", self.ca_dir, on="this machine")
        if self.subject and not self.subject.startswith("/"):
            raise ValueError(f"subject = {self.subject!r} must be a DN such as /O=Grid/CN=host.example.org")
        for key in ("service", "fork_service"):
            if re.fullmatch(r"[A-Za-z0-9_-]+", getattr(self, key)) is None:
                raise ValueError(f"{key} = {getattr(self, key)!r} must be a service such as jobmanager-pbs")
        for text in self.rsl:
            if re.fullmatch(r"\([A-Za-z_]+\s*=[^()\n]*\)", text) is None:
                raise ValueError(f"rsl = {text!r} must be a relation such as (host_count=1)")
        if self.ports and re.fullmatch(r"[0-9]{1,5},[0-9]{1,5}", self.ports) is None:
            raise ValueError(f"ports = {self.ports!r} must be low,high")
        if self.callback_host and re.fullmatch(r"[A-Za-z0-9.:-]+", self.callback_host) is None:
            raise ValueError(f"callback_host = {self.callback_host!r} must be a host name or an address")
        absolute("directory", self.directory)
        absolute("scratch", self.scratch, optional=True)
        positive("max_pilots", self.max_pilots)
        for key in ("directory", "scratch", "queue", "project"):
            if "\n" in getattr(self, key):
                raise ValueError(f"{key} must not hold line breaks")


@dataclass(frozen=True)
class KubernetesCE:
    """A namespace of a Kubernetes cluster, whose API server is at ``url``.

    ``conn_id`` is the Airflow connection with the account's token as password, and ``ca_file`` the CA on this machine
    that the API server's certificate must come from. Pilots run in ``image`` as ``uid``; ``host_paths`` of the nodes,
    such as ``/cvmfs``, are there read-only. ``node_selector`` holds labels as ``name=value``. ``max_pilots``: all that
    have not ended in the namespace.
    """

    kind: str
    url: str
    ca_file: str
    namespace: str
    image: str
    conn_id: str = ""
    uid: int = 1000
    host_paths: tuple[str, ...] = ()
    node_selector: tuple[str, ...] = ()
    max_pilots: int = 1000

    def __post_init__(self) -> None:
        _https("url", self.url, "https://host[:port]")
        absolute("ca_file", self.ca_file, on="this machine")
        if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", self.namespace) is None:
            raise ValueError(f"namespace = {self.namespace!r} must be lower-case letters, digits and '-'")
        if not self.image or any(c.isspace() for c in self.image):
            raise ValueError(f"image = {self.image!r} must be the name of a container image")
        for path in self.host_paths:
            absolute("host_paths", path)
        for pair in self.node_selector:
            if re.fullmatch(r"[A-Za-z0-9./_-]+=[A-Za-z0-9._-]*", pair) is None:
                raise ValueError(f"node_selector = {pair!r} must be name=value")
        positive("uid", self.uid)
        positive("max_pilots", self.max_pilots)


@dataclass(frozen=True)
class ScheddCE:
    """An HTCondor schedd elsewhere, such as an HTCondor-CE, by the bindings; ``collector`` (``host:port``) knows it.

    ``schedd`` is its name there; empty: the collector's own. ``conn_id`` is the Airflow connection with an IDTOKEN as
    password, and ``trust_domain`` that of the token where it is not the collector's. ``options`` are further lines of
    the submit description. ``max_pilots``: all that have not ended there.
    """

    kind: str
    collector: str
    schedd: str = ""
    conn_id: str = ""
    trust_domain: str = ""
    options: tuple[str, ...] = ()
    max_pilots: int = 1000

    def __post_init__(self) -> None:
        _host_and_port("collector", self.collector)
        for key in ("schedd", "trust_domain"):
            if re.fullmatch(r"[A-Za-z0-9.:@_-]*", getattr(self, key)) is None:
                raise ValueError(f"{key} = {getattr(self, key)!r} must be letters, digits and .:@_- only")
        if any("\n" in line for line in self.options):
            raise ValueError("options must not hold line breaks")
        positive("max_pilots", self.max_pilots)


CE = LocalCE | BatchCE | ArcCE | GramCE | KubernetesCE | ScheddCE
CE_KINDS: Mapping[
    str, type[LocalCE] | type[BatchCE] | type[ArcCE] | type[GramCE] | type[KubernetesCE] | type[ScheddCE]
] = {
    "local": LocalCE,
    "slurm": BatchCE,
    "gridengine": BatchCE,
    "htcondor": BatchCE,
    "pbs": BatchCE,
    "arc": ArcCE,
    "gram": GramCE,
    "kubernetes": KubernetesCE,
    "schedd": ScheddCE,
}
BRINGS_PROXY = (ArcCE, GramCE)
"""Kinds that give a pilot a proxy of the robot: ``[pilot] proxy`` may be empty."""
KEEPS_ITS_PROXY = (KubernetesCE, ScheddCE)
"""Kinds that take no credential from here: the site sees to that of ``[pilot] proxy``."""
