"""MyProxy servers for tests: Debian's, and ours, over the same PKI and with the same policies.

``from support.myproxy_server import start_debian, start_ours, ServerProcess``; each is a context manager.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from airpanda.myproxy.client import MyProxyClient
from airpanda.x509.credential import ProxyCredential
from support.need import need_program
from support.pki import Pki

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
accepted_credentials       "/O=Test Grid/*"
authorized_retrievers      "*"
default_retrievers         "*"
authorized_renewers        "/O=Test Grid/CN=Robot:*"
default_renewers           "none"
authorized_key_retrievers  "*"
default_key_retrievers     "none"
trusted_retrievers         "/O=Test Grid/CN=Robot:*"
default_trusted_retrievers "none"
max_proxy_lifetime 168
cert_dir {certs}
"""


@dataclass(frozen=True)
class ServerProcess:
    """A running server on the loopback interface."""

    kind: str
    port: int
    pid: int
    storage: Path
    pki: Pki

    def client(self, user: str | None = None, **options: object) -> MyProxyClient:
        """Our client, as this user of the PKI or anonymous."""
        credential = ProxyCredential.from_files(*self.pki.user(user)) if user else None
        arguments: dict[str, object] = {"credential": credential, "timeout": timedelta(seconds=60), **options}
        return MyProxyClient("localhost", self.port, ca_dir=self.pki.ca_dir, **arguments)  # type: ignore[arg-type]

    def environment(self, user: str | None = None) -> dict[str, str]:
        """For Debian's C clients."""
        base = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.pki.root),
            "X509_CERT_DIR": str(self.pki.ca_dir),
            "MYPROXY_SERVER": "localhost",
            "MYPROXY_SERVER_PORT": str(self.port),
        }
        if user is None:
            return {**base, "X509_USER_PROXY": "/dev/null"}
        cert, key = self.pki.user(user)
        return {**base, "X509_USER_CERT": str(cert), "X509_USER_KEY": str(key), "X509_USER_PROXY": "/nonexistent"}


@contextmanager
def start_debian(pki: Pki, config: str = CONFIG) -> Iterator[ServerProcess]:
    """Debian's ``myproxy-server`` on a free port."""
    program = need_program("myproxy-server", "myproxy-server")
    with _directory(pki, config) as directory:
        argv = [program, "-c", f"{directory}/config", "-s", f"{directory}/store", "-l", "127.0.0.1", "-p", "0"]
        environment = {
            "PATH": "/usr/sbin:/usr/bin",
            "HOME": str(directory),
            "X509_CERT_DIR": str(pki.ca_dir),
            "X509_USER_CERT": str(pki.host().cert),
            "X509_USER_KEY": str(pki.host().key),
        }
        argv += ["-P", f"{directory}/pid", "-z", f"{directory}/port"]
        subprocess.run(argv, env=environment, check=True, timeout=60)
        pid = int(_wait_for(directory / "pid"))
        try:
            yield ServerProcess("debian", int(_wait_for(directory / "port")), pid, directory / "store", pki)
        finally:
            os.kill(pid, 15)


@contextmanager
def start_ours(pki: Pki, config: str = CONFIG, *options: str) -> Iterator[ServerProcess]:
    """Our development server on a free port; it must end by SIGTERM within some seconds."""
    with _directory(pki, config) as directory:
        argv = [sys.executable, "-m", "airpanda.myproxy.server", "--config", f"{directory}/config"]
        argv += ["--storage", f"{directory}/store", "--ca-dir", str(pki.ca_dir), "--port", "0"]
        argv += ["--host-cert", str(pki.host().cert), "--host-key", str(pki.host().key)]
        argv += ["--port-file", f"{directory}/port", *options]
        environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "plugins")}
        with (directory / "log").open("wb") as log, subprocess.Popen(argv, env=environment, stderr=log) as process:
            try:
                port = int(_wait_for(directory / "port", directory / "log", process))
                yield ServerProcess("ours", port, process.pid, directory / "store", pki)
            finally:
                process.terminate()
                try:
                    code = process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
            text = (directory / "log").read_text()
            assert code == 0, text
            assert "Traceback" not in text, text


@contextmanager
def _directory(pki: Pki, config: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="myproxy-") as name:
        directory = Path(name)
        (directory / "store").mkdir(mode=0o700)
        (directory / "config").write_text(config.format(certs=pki.ca_dir))
        yield directory


def _wait_for(path: Path, log: Path | None = None, process: subprocess.Popen[bytes] | None = None) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        text = path.read_text().strip() if path.exists() else ""
        if text:
            return text
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear: {log.read_text() if log else ''}")
