"""The launcher as a root-owned socket service: one forked child for each request, from a warm parent.

Started by ``airpanda-launcherd CONFIG SOCKET`` or by systemd's socket unit (descriptor 3). The caller is who the
kernel says it is (SO_PEERCRED, SO_PEERGROUPS). When the client, this daemon or a child dies, the payload dies.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import NoReturn

from airpanda.core.errors import AirpandaError
from airpanda.glexec import wire
from airpanda.glexec.config import read_config
from airpanda.glexec.contract import INTERNAL_ERROR
from airpanda.glexec.launcher import credential as _credential  # noqa: F401 - loaded once, for all children
from airpanda.glexec.launcher import kernel, limits
from airpanda.glexec.launcher.admission import Admission, peer_of, pid_of
from airpanda.glexec.launcher.refusal import client_error, refusal
from airpanda.glexec.launcher.request import Request, caller_of, keep_known
from airpanda.glexec.launcher.run import conduct
from airpanda.glexec.launcher.sources import ClientSource, catch_signals

_REQUEST_S = 10
_RECOVERY_S = 0.1
_ENDING_S = 20.0
_SYSTEMD_DESCRIPTOR = 3


def main(config_path: Path, socket_path: Path) -> int:
    """Serve until SIGTERM; the exit code is 0 then, 1 where the service cannot start."""
    try:
        config = read_config(config_path)
        listener = _listen(socket_path)
    except (AirpandaError, OSError) as error:
        print(f"airpanda-launcherd: {error}", file=sys.stderr)
        return 1
    os.environ.clear()
    gc.freeze()  # what is loaded now stays: collections need not look at it
    _Daemon(listener, config_path, Admission(config_path, config)).serve()
    return 0


def _listen(path: Path) -> socket.socket:
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_SYSTEMD_DESCRIPTOR)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)  # who may use it is decided by the kernel's word on the caller, not by this mode
    listener.listen(128)
    return listener


class _Daemon:
    def __init__(self, listener: socket.socket, config_path: Path, admission: Admission) -> None:
        self._listener = listener
        self._config_path = config_path
        self._admission = admission

    def serve(self) -> None:
        signals = catch_signals(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
        while True:
            ready, _, _ = select.select([self._listener.fileno(), signals], [], [])
            if signals in ready:
                numbers = os.read(signals, 4096)
                if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                    return self._end(signals)
                self._reap()
            if self._listener.fileno() in ready:
                try:
                    connection, _ = self._listener.accept()
                    with connection:
                        self._accept(connection)
                except OSError as error:
                    # A client that left at once, or no descriptor or process left: this request fails, others run on.
                    print(f"airpanda-launcherd: {error.strerror}", file=sys.stderr, flush=True)
                    time.sleep(_RECOVERY_S)

    def _end(self, signals: int) -> None:
        """End all payloads and wait until each is on record: who kills what is left must find nothing."""
        self._listener.close()
        for pid in self._admission.pids():
            os.kill(pid, signal.SIGTERM)  # not reaped yet, so it is ours
        deadline = time.monotonic() + _ENDING_S
        while self._admission.pids() and time.monotonic() < deadline:
            if select.select([signals], [], [], 1.0)[0]:
                os.read(signals, 4096)
            self._reap()

    def _accept(self, connection: socket.socket) -> None:
        peer = peer_of(connection)
        refused = self._admission.refusal_of(peer)
        if refused is not None:
            answer = {"exit": refused.exit_code, "message": str(refused)}
            with contextlib.suppress(OSError):
                connection.send(wire.frame(answer), socket.MSG_DONTWAIT)
            return
        daemon, place = os.getpid(), self._listener.getsockname()
        pid = os.fork()
        if pid == 0:
            self._listener.close()
            _serve_one(connection, self._config_path, daemon, place)
        self._admission.begin(pid, peer)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._admission.end(pid)


def _serve_one(connection: socket.socket, config_path: Path, daemon: int, place: str) -> NoReturn:
    """Never returns. Whatever goes wrong, the client's connection ends, and so does the payload."""
    try:
        gc.disable()  # all ends with this process, and a collection would copy the daemon's memory
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        kernel.forbid_inspection()
        kernel.die_with_parent(signal.SIGTERM, daemon)
        source = ClientSource(connection)
        try:
            code, message = conduct(_receive_request(connection, place), config_path, source)
        except AirpandaError as error:
            refused = refusal(error)
            code, message = refused.exit_code or INTERNAL_ERROR, str(refused)
        with contextlib.suppress(OSError):  # the client may be gone; the record has been written
            connection.sendall(wire.frame({"exit": code, "message": message}))
    except Exception as error:  # noqa: BLE001 - the outermost frame of a child: tell the site, never the stack below
        print(f"airpanda-launcherd: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _receive_request(connection: socket.socket, place: str) -> Request:
    """The request, in one time for all of it; ``place`` is the launcher's socket."""
    caller = caller_of(*peer_of(connection))
    deadline = time.monotonic() + _REQUEST_S
    connection.settimeout(_REQUEST_S)
    try:
        size = wire.HEADER.size
        room = socket.CMSG_SPACE(4 * wire.DESCRIPTORS)
        header, ancillary, _, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
        descriptors = _descriptors(ancillary)
        header += _receive(connection, size - len(header), deadline)
        body = _receive(connection, wire.body_length(header), deadline)
        argv, environ = wire.parse_request(body)
        limited = limits.of_process(pid_of(connection))
    except (OSError, EOFError, ValueError, struct.error, RecursionError) as error:
        raise client_error("the request could not be read") from error
    connection.settimeout(None)
    standard = (descriptors[0], descriptors[1], descriptors[2])
    known, own = keep_known(environ), (place,)
    return Request(caller, tuple(argv), known, standard, descriptors[3], "socket", limits=limited, hide=own)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % 4])
    if len(found) != wire.DESCRIPTORS:
        raise ValueError(f"a request comes with {wire.DESCRIPTORS} descriptors")
    return list(found)


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
