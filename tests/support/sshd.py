"""OpenSSH's sshd on the worker node of a test, on a free port of the loopback; it ends with the node.

``with running_sshd(node, directory) as sshd``: ``sshd.login`` and ``sshd.known_hosts`` let the pilots' account in.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airpanda.computing.ssh import SshLogin
from airpanda.core.secret import Secret
from airpanda_demo.worker_node import WorkerNode
from support.need import need_program
from support.slurm import free_port

PASSPHRASE = "sshd fixture's passphrase"
_CONF = """\
ListenAddress 127.0.0.1
Port {port}
HostKey /run/sshd-test/hostkey
PidFile none
AuthorizedKeysFile /run/sshd-test/%u.pub
StrictModes no
UsePAM no
PasswordAuthentication {password_too}
KbdInteractiveAuthentication no
AllowUsers pilot
MaxSessions {max_sessions}
MaxStartups 10:30:100
"""


class Sshd:
    """One server. ``directory`` gets the client's side: the user's key (with and without passphrase), known_hosts."""

    def __init__(self, node: WorkerNode, directory: Path) -> None:
        self._program = need_program("sshd", "openssh-server")
        need_program("ssh-keygen", "openssh-client")
        self._node, self._directory = node, directory
        self._inside = node.path(Path("/run/sshd-test"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.known_hosts = directory / "known_hosts"
        self.key = directory / "userkey"
        self._inside.mkdir(mode=0o755)
        node.path(Path("/run/sshd")).mkdir(mode=0o755, exist_ok=True)
        _keygen(self.key, "")
        shutil.copy(self.key.with_suffix(".pub"), self._inside / "pilot.pub")
        self.new_host_key()
        self.remember()

    @property
    def login(self) -> SshLogin:
        return SshLogin("pilot", private_key=Secret(self.key.read_text()))

    def new_host_key(self) -> None:
        """As after a new installation of the host; takes effect at the next start."""
        for path in (self._inside / "hostkey", self._inside / "hostkey.pub"):
            path.unlink(missing_ok=True)
        _keygen(self._inside / "hostkey", "")

    def remember(self) -> None:
        """Put the present host key into known_hosts."""
        kind, key = (self._inside / "hostkey.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def set_password(self, password: Secret[str]) -> None:
        """Of the pilots' account; it opens nothing unless the server is started with ``password_too``."""
        argv = ["openssl", "passwd", "-6", "-stdin"]
        made = subprocess.run(argv, input=password.reveal(), capture_output=True, text=True, check=True, timeout=20)
        shadow = self._node.path(Path("/etc/shadow"))
        lines = [line.split(":") for line in shadow.read_text().splitlines()]
        changed = [[name, made.stdout.strip() if name == "pilot" else old, *rest] for name, old, *rest in lines]
        shadow.write_text("".join(":".join(fields) + "\n" for fields in changed))

    def start(self, *, max_sessions: int = 10, password_too: bool = False) -> None:
        options = {"max_sessions": max_sessions, "password_too": "yes" if password_too else "no"}
        (self._inside / "sshd_config").write_text(_CONF.format(port=self.port, **options))
        with (self._inside / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._node.root_argv(), self._program, "-D", "-e", "-f", "/run/sshd-test/sshd_config"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.settimeout(5)
                if probe.recv(4) == b"SSH-":
                    return
            assert time.monotonic() < end, (self._inside / "log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server and every connection."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait(60)
        self.cut()

    def cut(self) -> None:
        """End the connections, not the server: what a firewall or a reboot does to them."""
        for pid in self._processes(b"sshd: pilot"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Server and connections stand still: the kernel takes what is sent, and nobody answers."""
        stopped = [*self._processes(b"sshd"), *self._processes(self._program.encode())]
        assert self._process is not None
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in (*stopped, self._process.pid):  # nsenter stops itself with its child
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _processes(self, begins: bytes) -> list[int]:
        """Processes of this node, by how their command line begins."""
        ours = os.readlink(f"/proc/{self._node.init_pid}/ns/pid")
        found = []
        for path in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
            with suppress(OSError):
                if (path / "cmdline").read_bytes().startswith(begins) and os.readlink(path / "ns/pid") == ours:
                    found.append(int(path.name))
        return found


class Proxy:
    """A TCP relay to a port, for drills: ``accept(n)`` says whether the n-th connect (from 0) gets through."""

    def __init__(self, target: int, accept: Callable[[int], bool]) -> None:
        self._target, self._accept = target, accept
        self.connects = 0
        self.mute = False  # whether what the server says is swallowed
        self.mute_after: int | None = None  # bytes of each connection that the server may say before that
        self.hang_up_after: int | None = None  # and before the connection is broken off
        self._left: int | None = None
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def reset(self) -> None:
        """Break all connections off."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def limit(self, n_bytes: int) -> None:
        """Break off after so many more bytes to the server."""
        self._left = n_bytes

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(5)
        for end in self._open:
            end.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                number, self.connects = self.connects, self.connects + 1
                if not self._accept(number):
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for pair in ((client, server, True), (server, client, False)):
                    self._threads.append(threading.Thread(target=self._relay, args=pair, daemon=True))
                    self._threads[-1].start()

    def _relay(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        said = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if counted and self._left is not None:
                    self._left -= len(data)
                    if self._left < 0:
                        break
                for bound in (self.mute_after, self.hang_up_after):
                    data = data if counted or bound is None else data[: max(0, bound - said)]
                said += len(data)
                if not counted and self.hang_up_after is not None and not data:
                    break
                if counted or not self.mute:
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _keygen(path: Path, passphrase: str) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True, timeout=60)


@contextmanager
def running_sshd(node: WorkerNode, directory: Path) -> Iterator[Sshd]:
    sshd = Sshd(node, directory)
    try:
        sshd.start()
        yield sshd
    finally:
        sshd.stop()
