"""A real ARC CE on the worker node of a test: A-REX's job engine and its HTTPS front end, with the fork LRMS.

``with running_arc(site) as arc``. Both daemons run as the node's root, see the node's accounts, and end with the node.
The robot of the site's PKI is mapped to the pilots' account. What Debian's start scripts do is done here: theirs bind
the front end to all interfaces, and spend minutes on a Diffie-Hellman group.
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

ROOT = "/run/arc"
# maxjobs: known at a time, running, per DN, in all, LRMS scripts at a time; -1 is no limit.
_CONF = """\
[common]
hostname=localhost
x509_cert_dir=/etc/grid-security/certificates
x509_host_key={root}/host.key
x509_host_cert={root}/host.pem
[authgroup:pilots]
subject={robot}
[mapping]
map_to_user=pilots pilot:pilot
[lrms]
lrms=fork
[arex]
controldir={root}/control
sessiondir={root}/session
logfile={root}/log/arex.log
joblog={root}/log/jobs.log
pidfile={root}/arex.pid
tmpdir={root}/tmp
wakeupperiod=1
maxjobs=-1 {running} -1 -1 16
[arex/ws]
wsurl=https://localhost:{port}/arex
logfile={root}/log/ws.log
pidfile={root}/ws.pid
[arex/ws/jobs]
allownew=yes
allowaccess=pilots
[infosys]
logfile={root}/log/infoprovider.log
[infosys/glue2]
[infosys/cluster]
[queue:fork]
"""
_HEAD = """\
<?xml version="1.0"?>
<ArcConfig xmlns="http://www.nordugrid.org/schemas/ArcConfig/2007"
  xmlns:tcp="http://www.nordugrid.org/schemas/ArcMCCTCP/2007" xmlns:arex="http://www.nordugrid.org/schemas/a-rex/Config">
  <Server><PidFile>{root}/{name}.pid</PidFile>
    <Logger><File>{root}/log/{name}.log</File><Level>INFO</Level></Logger></Server>
  <ModuleManager><Path>/usr/lib/arc/</Path></ModuleManager>
"""
_ENGINE = (
    _HEAD
    + """\
  <Plugins><Name>arex</Name></Plugins>
  <Chain><Service name="a-rex" id="a-rex">
    <arex:endpoint>https://localhost:{port}/arex</arex:endpoint><arex:gmconfig>{root}/arex.cfg</arex:gmconfig>
  </Service></Chain>
</ArcConfig>
"""
)
_FRONT_END = (
    _HEAD
    + """\
  <Plugins><Name>mcctcp</Name></Plugins><Plugins><Name>mcctls</Name></Plugins><Plugins><Name>mcchttp</Name></Plugins>
  <Plugins><Name>mccsoap</Name></Plugins><Plugins><Name>arex</Name></Plugins><Plugins><Name>identitymap</Name></Plugins>
  <Plugins><Name>arcshc</Name></Plugins><Plugins><Name>arcshclegacy</Name></Plugins>
  <Chain>
    <Component name="tcp.service" id="tcp"><next id="tls"/>
      <tcp:Listen><tcp:Interface>127.0.0.1</tcp:Interface><tcp:Port>{port}</tcp:Port></tcp:Listen></Component>
    <Component name="tls.service" id="tls"><next id="http"/>
      <KeyPath>{root}/host.key</KeyPath><CertificatePath>{root}/host.pem</CertificatePath>
      <CACertificatesDir PolicyGlobus="true">/etc/grid-security/certificates</CACertificatesDir>
      <VOMSProcessing>standard</VOMSProcessing><ClientAuthn>false</ClientAuthn></Component>
    <Component name="http.service" id="http"><next id="soap">POST</next><next id="plexer"/>
      <SecHandler name="arclegacy.handler" event="incoming"><ConfigFile>{root}/arex.cfg</ConfigFile></SecHandler>
    </Component>
    <Component name="soap.service" id="soap"><next id="plexer"/><ContinueNonSOAP>true</ContinueNonSOAP></Component>
    <Plexer name="plexer.service" id="plexer"><next id="a-rex">^/arex</next></Plexer>
    <Service name="a-rex" id="a-rex">
      <SecHandler name="arclegacy.map" event="incoming"><ConfigBlock>
        <ConfigFile>{root}/arex.cfg</ConfigFile><BlockName>mapping</BlockName></ConfigBlock></SecHandler>
      <arex:endpoint>https://localhost:{port}/arex</arex:endpoint><arex:gmconfig>{root}/arex.cfg</arex:gmconfig>
      <arex:gmrun>none</arex:gmrun>
    </Service>
  </Chain>
</ArcConfig>
"""
)
_PREPARE = """\
set -eu
umask 022
mkdir -p {root}/control {root}/session {root}/log {root}/tmp
chmod 1777 {root}/tmp
cat >{root}/arc.conf
/usr/lib/arc/arcconfig-parser --config {root}/arc.conf --runconfig {root}/arex.cfg --save 2>&1
"""


class Arc:
    """One CE. ``engine`` and ``front`` can be stopped and started by themselves: they are two programs."""

    def __init__(self, site: Site, *, running: int = 64) -> None:
        need_program("arched", "nordugrid-arc-hed")
        if not Path("/usr/share/arc/submit-fork-job").exists():
            need_program("arc-arex-start", "nordugrid-arc-arex")
        self.site, self.node = site, site.node
        self.port = free_port()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        values = {"root": ROOT, "port": self.port, "robot": site.pki.dn("pilot"), "running": running}
        self.root("sh", "-c", _PREPARE.format(**values), stdin=_CONF.format(**values).encode())
        for name, text in (("engine", _ENGINE), ("front", _FRONT_END)):
            self.path(f"{name}.xml").write_text(text.format(name=name, **values))
        certificate, key = site.pki.host()
        self.path("host.pem").write_bytes(certificate.read_bytes())
        self.path("host.key").write_bytes(key.read_bytes())
        self.path("host.key").chmod(0o400)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/arex"

    def path(self, name: str) -> Path:
        """A place of the CE, as the host sees it."""
        return self.node.path(Path(ROOT, name))

    def start(self, *names: str) -> None:
        for name in names or ("engine", "front"):
            with self.path(f"log/{name}.out").open("ab") as out:
                self._daemons[name] = subprocess.Popen(
                    [*self.node.root_argv(), "/usr/sbin/arched", "-f", "-c", f"{ROOT}/{name}.xml"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={
                        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                        "ARC_LOCATION": "/usr",
                        "GLOBUS_LOCATION": "/usr",
                        "ARC_CONFIG": f"{ROOT}/arc.conf",
                        "X509_USER_CERT": f"{ROOT}/host.pem",
                        "X509_USER_KEY": f"{ROOT}/host.key",
                        "X509_CERT_DIR": "/etc/grid-security/certificates",
                        "TMPDIR": f"{ROOT}/tmp",
                        "HOSTNAME": "localhost",
                        "MALLOC_ARENA_MAX": "2",
                    },
                    start_new_session=True,
                )
            if name == "front":
                self._await_front_end()

    def stop(self, name: str) -> None:
        """End one daemon; ``start`` brings it back."""
        entering, daemons = self._daemons.pop(name), self._pids(name)
        for pid in daemons:
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 15
        while self._pids(name):  # what entered the node ends before the daemon does
            if time.monotonic() > end:
                for pid in daemons:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        entering.wait(15)
        self.path(f"{name}.pid").unlink(missing_ok=True)

    def _pids(self, name: str) -> list[int]:
        """The daemon itself, as the host sees it, in this node and no other."""
        ours = os.readlink(f"/proc/{self.node.init_pid}/ns/pid")
        found = []
        for path in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
            with suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"arched") and f"{ROOT}/{name}.xml".encode() in words:
                    found += [int(path.name)] if os.readlink(path / "ns/pid") == ours else []
        return found

    def close(self) -> None:
        for name in tuple(self._daemons):
            self.stop(name)

    def root(self, *argv: str, stdin: bytes = b"") -> str:
        """The output of a command that the node's root runs; it must succeed."""
        done = subprocess.run([*self.node.root_argv(), *argv], input=stdin, stdout=subprocess.PIPE, timeout=60)
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode()

    def _await_front_end(self) -> None:
        end = time.monotonic() + 90
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert time.monotonic() < end, (
                self.path("log/front.out").read_text() + self.path("log/front.log").read_text()
            )
            time.sleep(0.05)


@contextmanager
def running_arc(site: Site, *, running: int = 64) -> Iterator[Arc]:
    arc = Arc(site, running=running)
    try:
        arc.start()
        yield arc
    finally:
        arc.close()
