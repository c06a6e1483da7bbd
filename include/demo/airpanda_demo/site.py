"""The demonstration's site on disk: certificates, keys, configuration, queue file, Connections.

Everything secret is 0600 in a 0700 directory; what other accounts must read (software, code, CA certificates) is
public and belongs to whoever started the demonstration.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography.fernet import Fernet

from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from airpanda.dispatcher.tokens import Issuer, create_key
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy
from airpanda_demo.errors import DemoError
from airpanda_demo.options import Options, Ports, free_ports
from airpanda_demo.pki import DemoPki, make_pki
from airpanda_demo.place import Place
from airpanda_demo.voms import VO, attribute_proxy, make_vomsdir

QUEUE = "DEMO"
PEOPLE = {
    "robot": "Robot: production",
    "alice": "Alice Analyst",
    "bob": "Bob Analyst",
    "pilot": "Robot: pilot factory 1",
}
# Their VOMS attributes, primary first. Outputs with access "vo" are shared among all of the VO.
OWNERS = {
    "robot": (f"/{VO}/Role=production", f"/{VO}"),
    "alice": (f"/{VO}",),
    "bob": (f"/{VO}",),
}
# What of airpanda runs on the worker node.
NODE_ROOMS = ("core", "x509", "myproxy", "glexec", "pilot")
LIFETIME = timedelta(days=2)


@dataclass(frozen=True)
class Node:
    """How the worker node is reached and what it looks like from inside. ``enter`` empty: this machine."""

    enter: tuple[str, ...]
    account: str
    directory: Path
    ca_dir: Path
    proxy: Path
    glexec: str
    hide: tuple[Path, ...] = ()
    show: tuple[Path, ...] = ()


class Site:
    """Makes the files of one demonstration and knows where they are.

    Args:
        checkout: the repository; read only.
        options: what the person chose.

    Raises:
        DemoError: the chosen port is taken.
    """

    def __init__(self, place: Place, checkout: Path, options: Options) -> None:
        self.place = place
        self.checkout = checkout
        self.options = options
        self.ports = free_ports(options.port)
        self.switches = os.geteuid() == 0
        self.admin_password: Secret[str] = Secret(secrets.token_urlsafe(12))
        self._pki: DemoPki | None = None
        self._client_token: Secret[str] | None = None

    @property
    def ui_url(self) -> str:
        return f"http://localhost:{self.ports.api}"

    @property
    def pki(self) -> DemoPki:
        if self._pki is None:
            raise DemoError("the site has no certificates yet")
        return self._pki

    @property
    def client_token(self) -> Secret[str]:
        """The demonstration's own token for the dispatcher."""
        if self._client_token is None:
            raise DemoError("the site has no signing key yet")
        return self._client_token

    def dn(self, who: str) -> str:
        return self.pki.dn(who)

    def make_identities(self) -> None:
        """CA, host certificate, people, and the dispatcher's key."""
        for path in (self.place.airflow, self.place.files, self.place.node, self.place.myproxy):
            path.mkdir(mode=0o700)
        self._pki = make_pki(self.place.pki, users=PEOPLE)
        make_vomsdir(self._pki, self.vomsdir)
        for owner, fqans in OWNERS.items():
            proxy = attribute_proxy(self._pki, owner, fqans, lifetime=LIFETIME, now=utcnow())
            proxy.write(self._proxy_of(owner))
        key = self.place.airflow / "signing.pem"
        create_key(key)
        self._client_token = Issuer(key).client_token("demo", ["*"], ["*"], LIFETIME, utcnow(), pilots=True)

    def copy_code(self) -> None:
        """What the node runs of airpanda, readable for its accounts whatever the checkout's modes are."""
        target = self.place.code / "airpanda"
        self.place.code.mkdir(mode=0o755)
        target.mkdir(mode=0o755)
        source = self.checkout / "plugins" / "airpanda"
        shutil.copyfile(source / "__init__.py", target / "__init__.py")
        for room in NODE_ROOMS:
            shutil.copytree(source / room, target / room, copy_function=shutil.copyfile, ignore=_CACHES)
        for path in target.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def pilot_proxy(self) -> Secret[bytes]:
        """A fresh proxy of the pilots' own certificate."""
        credential = ProxyCredential.from_files(*self.pki.user("pilot"))
        return create_proxy(credential, lifetime=LIFETIME, now=utcnow()).to_pem()

    def write_configuration(self, database_url: str) -> None:
        """airflow.cfg from airflow.cfg.example, the UI's password, and the folder of queues and scripts."""
        place = self.place
        values = {
            "AIRPANDA_CHECKOUT": str(self.checkout),
            "AIRPANDA_HOME": str(place.airflow),
            "AIRPANDA_INCLUDE": str(place.include),
            "AIRPANDA_DATABASE_URL": database_url,
            "AIRPANDA_FERNET_KEY": Fernet.generate_key().decode(),
            "AIRPANDA_JWT_SECRET": secrets.token_urlsafe(64),
            "AIRPANDA_API_SECRET": secrets.token_urlsafe(64),
            "AIRPANDA_API_PORT": str(self.ports.api),
        }
        example = (self.checkout / "airflow.cfg.example").read_text()
        text = fill_in(example, values)
        text = text.replace("\nmyproxy_servers =\n", f"\nmyproxy_servers = localhost:{self.ports.myproxy}\n")
        write_private(place.airflow / "airflow.cfg", text)
        write_private(place.airflow / "passwords.json", json.dumps({"admin": self.admin_password.reveal()}))
        place.include.mkdir(mode=0o711)
        (place.include / "queues").mkdir(mode=0o755)
        for folder in ("physics", "pilot"):
            (place.include / folder).symlink_to(self.checkout / "include" / folder)

    def write_queue(self, node: Node) -> None:
        """The queue of the demonstration's node: an identity switch is required where there can be one."""
        text = queue_text(node, self.place, self.ports, switches=self.switches)
        (self.place.include / "queues" / f"{QUEUE}.toml").write_text(text)

    def write_connections(self) -> Path:
        """Airflow's Connections in the form of ``airflow connections import``; remove the file after that."""
        http = {"conn_type": "http", "host": "127.0.0.1", "port": self.ports.api, "schema": "http"}
        connections: dict[str, dict[str, object]] = {
            "panda_default": {**http, "password": self.client_token.reveal(), "extra": {"base_path": "/panda"}},
            "myproxy_default": {
                "conn_type": "generic",
                "host": "localhost",
                "port": self.ports.myproxy,
                "extra": {
                    "ca_dir": str(self.pki.ca_dir),
                    "vomsdir": str(self.vomsdir),
                    "retriever_dn": self.dn("pilot"),
                },
            },
        }
        for owner in OWNERS:
            # A proxy, as voms-proxy-init leaves one: Airflow need not hold anybody's own key.
            extra = {"proxy_file": str(self._proxy_of(owner))}
            connections[f"owner_{owner}"] = {"conn_type": "generic", "extra": extra}
        path = self.place.airflow / "connections.json"
        write_private(path, json.dumps(connections))
        return path

    def _proxy_of(self, owner: str) -> Path:
        return self.place.pki / f"{owner}.proxy"

    @property
    def vomsdir(self) -> Path:
        """Which server may speak for the VO."""
        return self.place.pki / "vomsdir"

    def write_myproxy_policies(self) -> Path:
        """Only the pilots may retrieve, each credential only with its passphrase."""
        path = self.place.myproxy / "myproxy-server.config"
        path.write_text(
            'accepted_credentials       "/O=Test Grid/*"\n'
            f'authorized_retrievers      "{self.dn("pilot")}"\n'
            'default_retrievers         "none"\n'
            'default_renewers           "none"\n'
            'default_key_retrievers     "none"\n'
            'default_trusted_retrievers "none"\n'
            "max_proxy_lifetime         168\n"
            f"cert_dir                   {_word(self.pki.ca_dir)}\n"
        )
        return path


_CACHES = shutil.ignore_patterns("__pycache__")


def _word(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)


def fill_in(example: str, values: Mapping[str, str]) -> str:
    """airflow.cfg.example with every ``$AIRPANDA_…`` replaced, outside of comments.

    Raises:
        KeyError: the example asks for a value that is not given.
    """
    lines = []
    for line in example.splitlines():
        if not line.startswith("#"):
            # % begins an interpolation in configuration files.
            line = re.sub(r"\$(AIRPANDA_[A-Z_]+)", lambda match: values[match[1]].replace("%", "%%"), line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def queue_text(node: Node, place: Place, ports: Ports, *, switches: bool) -> str:
    """The queue file. JSON's strings and lists are TOML's too."""
    queue = {"name": QUEUE, "state": "online", "identity_policy": "REQUIRED" if switches else "OPTIONAL"}
    tables: dict[str, dict[str, object]] = {
        "queue": {**queue},
        "slot": {"cores": 1, "memory_mib": 2000, "disk_mib": 1000, "walltime_s": 7200},
        "ce": {
            "kind": "local",
            "enter": list(node.enter),
            "account": node.account,
            "max_pilots": 8,
            "directory": str(node.directory),
        },
        "pilot": {
            "python": str(place.software / "bin" / "python"),
            "code": str(place.code),
            "dispatcher_url": f"https://localhost:{ports.gateway}",
            "ca_dir": str(node.ca_dir),
            "proxy": str(node.proxy),
            "glexec": node.glexec,
            "myproxy": f"localhost:{ports.myproxy}",
            "idle_limit_s": 30,
            "benchmark_s": 0,
            "hide": [str(path) for path in node.hide],
            "show": [str(path) for path in node.show],
        },
        # numpy's threads would fight for the one core of a slot.
        "environment": {"PATH": f"{place.software / 'bin'}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    }
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


def write_private(path: Path, text: str) -> None:
    """A new 0600 file, complete when it is there; an older one is replaced, never followed."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
