"""The worker node of the demonstration: a private one with accounts for root, this machine for everybody else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from airpanda_demo.options import LAUNCHER
from airpanda_demo.report import Launch
from airpanda_demo.site import OWNERS, Node, Site
from airpanda_demo.switching import Switching, choose, lcmaps_db
from airpanda_demo.worker_node import (
    ACCOUNTS,
    GRID_SECURITY,
    LOG,
    SUDO_LOG,
    NodeAccount,
    WorkerNode,
    python_directories,
)

_PILOT = "pilot"
_PILOT_UID = 61001
_HOME = Path("/home") / _PILOT
_PILOTS = Path("/var/tmp/pilots")  # noqa: S108 - the node's own, empty at its start
# Before a pilot takes work it sends its own proxy through the launcher, which must not end in its own account.
_PROBE = NodeAccount("probe", 61002)
_LOG_BYTES = 1_000_000


class DemoNode:
    """Starts the node, puts the pilots' proxy there, and says how pilots get there."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._node: WorkerNode | None = None
        self.switching: Switching | None = None
        """How payloads get their owners' accounts, once the private node is started; None on this machine."""

    def start(self) -> Node:
        """Start it. Raises ConfigurationError when it cannot be built."""
        self._site.copy_code()
        return self._start_private() if self._site.switches else self._use_this_machine()

    def launches(self) -> dict[str, Launch]:
        """What the launcher's own log on the node says of each payload, by the label that pilots give; {} without."""
        records = self._node.records() if self._node is not None and self._node.init_pid else []
        return {str(record["id"]): Launch.of(record) for record in records if record["identity_switched"]}

    def stop(self) -> None:
        """Keep the node's logs, then end the private node with everything on it; this machine stays."""
        if self._node is None:
            return
        logs = self._site.place.logs
        try:
            if self._node.init_pid:
                _keep_logs(self._node.path(_PILOTS), logs / "pilots")
                _keep([self._node.path(path) for path in (LOG, SUDO_LOG)], logs)
        finally:
            self._node.stop()

    def _start_private(self) -> Node:
        site, place = self._site, self._site.place
        python = place.software / "bin" / "python"
        chosen = choose(python, asked=f"{LAUNCHER}=socket" if site.options.socket_launcher else "")
        self._node = WorkerNode(
            place.node,
            ca_dir=site.pki.ca_dir,
            vomsdir=site.vomsdir,
            mapfile={**{site.dn(owner): owner for owner in OWNERS}, site.dn("pilot"): _PROBE.name},
            accounts=(*ACCOUNTS, _PROBE),
            software=[place.software, place.code],
            hide=[place.root, site.checkout],
            python=python,
            lcmaps_db=lcmaps_db(chosen.modules, GRID_SECURITY) if chosen.modules else "",
            sudo=chosen.way == "sudo",
        )
        self.switching = chosen
        self._node.start()
        proxy = _HOME / "pilot.proxy"
        _write(self._node.path(proxy), site.pilot_proxy().reveal(), uid=_PILOT_UID)
        return Node(
            enter=(str(self._node.enter),),
            account=_PILOT,
            directory=_PILOTS,
            ca_dir=GRID_SECURITY / "certificates",
            proxy=proxy,
            glexec=str(self._node.glexec),
        )

    def _use_this_machine(self) -> Node:
        site, place = self._site, self._site.place
        place.pilots.mkdir(mode=0o711)
        proxy = place.node / "pilot.proxy"
        _write(proxy, site.pilot_proxy().reveal())
        software = [place.software, *python_directories(place.software / "bin" / "python")]
        return Node(
            enter=(),
            account="",
            directory=place.pilots,
            ca_dir=site.pki.ca_dir,
            proxy=proxy,
            glexec="",
            hide=(place.root, *_home(), site.checkout),
            show=tuple(dict.fromkeys(software)),
        )


def _keep_logs(source: Path, target: Path) -> None:
    """Copy ``<pilot>/pilot.log``. The pilots' account owns the source: links are not followed, sizes are bounded."""
    target.mkdir(mode=0o700, exist_ok=True)
    for directory in source.glob("*-*"):
        try:
            descriptor = os.open(directory / "pilot.log", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        with os.fdopen(descriptor, "rb") as log:
            (target / f"{directory.name}.log").write_bytes(log.read(_LOG_BYTES))


def _keep(sources: list[Path], target: Path) -> None:
    """Copy root's own logs of the node."""
    for source in sources:
        if source.exists():
            shutil.copyfile(source, target / source.name)


def _home() -> list[Path]:
    home = Path(os.environ.get("HOME", "/"))
    return [home] if home.is_absolute() and home != Path("/") else []


def _write(path: Path, data: bytes, *, uid: int | None = None) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        if uid is not None:
            os.fchown(file.fileno(), uid, uid)
        file.write(data)
