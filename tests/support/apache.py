"""Debian's Apache with mod_dav on loopback: the WebDAV server that is no grid storage and tells no checksums."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.launcher import wait_for
from support.need import need_program
from support.pki import Pki

MODULES = Path("/usr/lib/apache2/modules")
CONFIG = """
ServerRoot {root}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {root}/pid
{account}
ErrorLog {root}/error.log
{modules}
LogFormat "%m %U %>s" short
CustomLog {root}/access.log short
DavLockDB {root}/locks
SSLEngine on
SSLCertificateFile {root}/host.pem
SSLCertificateKeyFile {root}/host.key
SSLCACertificatePath {ca_dir}
SSLVerifyClient {verify}
DocumentRoot {root}/files
<Location /d>
  Dav On
</Location>
<Location /d/closed>
  Require all denied
</Location>
"""
WANTED = ("mpm_event", "authz_core", "ssl", "dav", "dav_fs")


@dataclass
class Apache:
    """A running server; below ``/d`` is WebDAV, beside it are files to read."""

    root: Path
    port: int

    @property
    def files(self) -> Path:
        return self.root / "files" / "d"

    def url(self, name: str) -> str:
        return f"davs://localhost:{self.port}/{name}"

    @property
    def methods(self) -> list[str]:
        return [line.split()[0] for line in (self.root / "access.log").read_text().splitlines()]


@contextmanager
def apache(pki: Pki, *, verify: str = "none") -> Iterator[Apache]:
    """``verify``: ``none`` asks for no certificate; ``require`` demands one, and knows no RFC 3820 proxies."""
    program = need_program("apache2", "apache2-bin")
    root = Path(tempfile.mkdtemp(prefix="airpanda-apache-", dir="/var/tmp"))
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = Apache(root, int(probe.getsockname()[1]))
        (place.files / "closed").mkdir(parents=True)
        cert, key = pki.host()
        shutil.copy(cert, root / "host.pem")
        shutil.copy(key, root / "host.key")
        text = CONFIG.format(
            root=root,
            port=place.port,
            ca_dir=pki.ca_dir,
            verify=verify,
            account="User www-data\nGroup www-data" if os.geteuid() == 0 else "",
            modules="\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in WANTED),
        )
        (root / "apache.conf").write_text(text)
        if os.geteuid() == 0:
            for path in (root, *(root / "files").rglob("*")):
                shutil.chown(path, "www-data")
        process = subprocess.Popen(
            [program, "-d", str(root), "-f", str(root / "apache.conf"), "-DFOREGROUND"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(lambda: process.poll() is not None or _answers(place.port), 30)
            assert process.poll() is None, (root / "error.log").read_text()
            yield place
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    finally:
        shutil.rmtree(root)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
