"""A real GRAM5 gatekeeper on the worker node of a test, with the fork job manager, and one for Slurm.

``with running_gram(site) as gram``. The gatekeeper runs as the node's root, job managers as the mapped account, and all
end with the node. The robot of the site's PKI is mapped to the pilots' account. The gatekeeper has no option for an
address; its port is a free one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.launcher import Site
from support.need import need_program
from support.slurm import free_port

ROOT = "/run/gram"
CA_DIR = "/etc/grid-security/certificates"
# Without -x509-cert-dir the job manager's Perl scripts do not know the CAs, and staging fails with an empty message.
_JOB_MANAGER = """\
-globus-toolkit-version 6.2
-log-pattern {root}/log/gram_$(LOGNAME).log
-log-levels FATAL|ERROR|WARN
-state-file-dir {root}/state
-x509-cert-dir {ca_dir}
-extra-envvars X509_CERT_DIR,GLOBUS_HOSTNAME
"""
_GATEKEEPER = (
    "/usr/sbin/globus-gatekeeper -f -x509_cert_dir {ca_dir} -x509_user_cert {root}/host.pem"
    " -x509_user_key {root}/host.key -gridmap {root}/grid-mapfile -e /usr/sbin"
    " -logfile {root}/log/gatekeeper.log -port {port}"
    " -grid_services {root}/services -pidfile {root}/gatekeeper.pid"
)
_SERVICE = (
    "stderr_log,local_cred - /usr/sbin/globus-job-manager globus-job-manager"
    " -conf {root}/job-manager.conf -type {kind}\n"
)
_PREPARE = """\
set -eu
umask 022
mkdir -p {root}/services {root}/log {root}/state
chmod 1777 {root}/log {root}/state
"""


class Gram:
    """One gatekeeper. It can be stopped and started, and suspended."""

    def __init__(self, site: Site) -> None:
        need_program("globus-gatekeeper", "globus-gatekeeper")
        need_program("globus-job-manager", "globus-gram-job-manager")
        if not Path("/usr/share/perl5/Globus/GRAM/JobManager/fork.pm").exists():
            need_program("globus-fork-starter", "globus-gram-job-manager-fork")
        self.site, self.node, self.port = site, site.node, free_port()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._values = values = {"root": ROOT, "port": self.port, "ca_dir": CA_DIR}
        self.root("sh", "-c", _PREPARE.format(**values))
        for name, text in {
            "job-manager.conf": _JOB_MANAGER,
            "services/jobmanager-fork": _SERVICE,
            "services/jobmanager-slurm": _SERVICE,
            "services/jobmanager": _SERVICE,
        }.items():
            kind = "slurm" if name.endswith("slurm") else "fork"
            self.path(name).write_text(text.format(**values, kind=kind))
        self.path("grid-mapfile").write_text(f'"{site.pki.dn("pilot")}" pilot\n')
        certificate, key = site.pki.host()
        self.path("host.pem").write_bytes(certificate.read_bytes())
        self.path("host.key").write_bytes(key.read_bytes())
        self.path("host.key").chmod(0o400)

    @property
    def contact(self) -> str:
        return f"localhost:{self.port}"

    def path(self, name: str) -> Path:
        """A place of the gatekeeper, as the host sees it."""
        return self.node.path(Path(ROOT, name))

    def start(self) -> None:
        with self.path("log/gatekeeper.out").open("ab") as out:
            self._daemon = subprocess.Popen(
                [*self.node.root_argv(), *_GATEKEEPER.format(**self._values).split()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "GLOBUS_HOSTNAME": "localhost"},
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert time.monotonic() < end, [path.read_text() for path in self.path("log").iterdir()]
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send the gatekeeper a signal, such as the one that makes it hang."""
        pid = self.path("gatekeeper.pid").read_text().strip()  # the node's, which is somebody else's on the host
        self.root("kill", f"-{number.name.removeprefix('SIG')}", pid)

    def stop(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait(15)

    def root(self, *argv: str, stdin: bytes = b"") -> str:
        """The output of a command that the node's root runs; it must succeed."""
        done = subprocess.run([*self.node.root_argv(), *argv], input=stdin, stdout=subprocess.PIPE, timeout=60)
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode()


@contextmanager
def running_gram(site: Site) -> Iterator[Gram]:
    gram = Gram(site)
    try:
        gram.start()
        yield gram
    finally:
        gram.stop()
