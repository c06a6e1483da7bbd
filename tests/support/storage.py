"""A grid storage on loopback: Debian's XRootD, with ``root:`` and ``davs:``, knowing people by their proxies."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.launcher import wait_for
from support.need import need_program
from support.pki import Pki

CONFIG = """
xrd.port {port}
all.export /d
oss.localroot {root}/data
all.adminpath {root}/run
all.pidpath {root}/run
xrd.tls {root}/host.pem {root}/host.key
xrd.tlsca certdir {ca_dir}
xrd.protocol XrdHttp:{web_port} libXrdHttp.so
http.gridmap {root}/gridmap
xrootd.chksum max 2 adler32
xrootd.seclib libXrdSec.so
sec.protocol gsi -certdir:{ca_dir} -cert:{root}/host.pem -key:{root}/host.key -crl:0 -gridmap:{root}/gridmap -gmapopt:2
sec.protbind * only gsi
acc.authdb {root}/authdb
ofs.authorize 1
"""


@dataclass
class Storage:
    """A running server. ``files`` is what lies in it as the host sees it, below ``/d``."""

    root: Path
    port: int
    web_port: int

    @property
    def files(self) -> Path:
        return self.root / "data" / "d"

    @property
    def log(self) -> str:
        return (self.root / "run" / "log").read_text(errors="replace")

    def davs(self, name: str, scheme: str = "davs") -> str:
        return f"{scheme}://localhost:{self.web_port}/d/{name}"

    def xroot(self, name: str) -> str:
        return f"root://localhost:{self.port}//d/{name}"

    def write(self, name: str, content: bytes) -> None:
        path = self.files / name
        path.write_bytes(content)
        os.chown(path, self.files.stat().st_uid, -1)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.files.iterdir())


@contextmanager
def storage(pki: Pki, people: Mapping[str, str]) -> Iterator[Storage]:
    """``people``: users of the PKI and what they may do below ``/d`` in XRootD's letters (``a`` all, ``lr`` read)."""
    program = need_program("xrootd", "xrootd-server")
    account = "xrootd" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    root = Path(tempfile.mkdtemp(prefix="airpanda-storage-", dir="/var/tmp"))
    try:
        place = Storage(root, _free_port(), _free_port())
        _write_files(place, pki, people, account)
        argv = [program, "-c", str(root / "xrootd.cfg"), "-l", str(root / "run" / "log")]
        argv += ["-R", account] if os.geteuid() == 0 else []
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_for(lambda: process.poll() is not None or _answers(place), 60)
            assert process.poll() is None, "XRootD did not start"
            yield place
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
    finally:
        shutil.rmtree(root)


def _write_files(place: Storage, pki: Pki, people: Mapping[str, str], account: str) -> None:
    root = place.root
    root.chmod(0o711)
    for directory in (place.files, root / "run"):
        directory.mkdir(parents=True)
    certificates = root / "certificates"
    shutil.copytree(pki.ca_dir, certificates)
    cert, key = pki.host()
    shutil.copy(cert, root / "host.pem")
    shutil.copy(key, root / "host.key")
    (root / "gridmap").write_text("".join(f'"{pki.dn(who)}" {who}\n' for who in people))
    (root / "authdb").write_text("".join(f"u {who} /d {may}\n" for who, may in people.items()))
    values = {"root": root, "port": place.port, "web_port": place.web_port, "ca_dir": certificates}
    (root / "xrootd.cfg").write_text(CONFIG.format(**values))
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            shutil.chown(path, account)
    (root / "host.key").chmod(0o400)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(place: Storage) -> bool:
    for port in (place.port, place.web_port):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return False
    return True
