"""The ``glexec`` program: gLExec's command line in front of the launcher's socket.

The socket's place is an argument of the installed start script, never of the environment. What the program can
do, any program of the caller could do: all rules are the launcher's.

It is started for every step of every job, so it uses the C modules behind ``socket`` and ``signal``: importing those
would take twice as long as all else it does.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import os
import sys

from airpanda.glexec import wire

VERSION = "airpanda glexec 0.9.11-compatible"
_USAGE = """Usage: glexec COMMAND [ARGUMENT...]
Run COMMAND under the account that the proxy in GLEXEC_CLIENT_CERT is mapped to.
  -h   this text          -v   version
Environment: GLEXEC_CLIENT_CERT GLEXEC_SOURCE_PROXY GLEXEC_TARGET_PROXY GLEXEC_ENV GLEXEC_ID GLEXEC_RECORD
Exit codes: the command's own; 201 caller's error, 202 site's error, 203 not authorised,
204 the command itself exited 201-204, 126 not executable, 128+n killed by signal n; 137 also where the launcher
was killed after the command had started."""
_CLIENT_ERROR, _INTERNAL_ERROR, _LOST = 201, 202, 137


def main(socket_path: str, argv: list[str]) -> int:
    """Run one command through the launcher; the exit code is gLExec's."""
    if argv[:1] == ["-h"]:
        print(_USAGE)
        return 0
    if argv[:1] == ["-v"]:
        print(VERSION)
        return 0
    if not argv or argv[0].startswith("-"):
        return _say(_USAGE, _CLIENT_ERROR)
    _fill_standard_descriptors()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(socket_path)
    except OSError as error:
        return _say(f"the launcher's socket {socket_path}: {error.strerror}", _INTERNAL_ERROR)
    return _converse(connection, argv)


def _fill_standard_descriptors() -> None:
    """A caller may have closed 0-2; nothing that is opened later may land there."""
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass


def _converse(connection: socket.socket, argv: list[str]) -> int:
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    environ = {name: value for name, value in os.environ.items() if name.startswith("GLEXEC_")}
    request = wire.request_frame(argv, environ)
    rights = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in (0, 1, 2, here))
    started = False
    try:
        _send(connection, request, rights)
        _forward_signals(connection)
        header = _receive(connection, wire.HEADER.size)
        if header == wire.STARTED:
            started = True
            header = _receive(connection, wire.HEADER.size)
        code, message = wire.parse_answer(_receive(connection, wire.body_length(header)))
    except (OSError, EOFError, ValueError) as error:
        if started:
            return _say("the launcher was killed after the command had started; its processes are ended", _LOST)
        return _say(f"the launcher broke off: {error}", _INTERNAL_ERROR)
    return _say(message, code) if message else code


def _send(connection: socket.socket, request: bytes, rights: bytes) -> None:
    """A launcher that refuses this caller has answered and closed before it was asked: its answer can be read still."""
    try:
        sent = connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        if sent < len(request):
            connection.sendall(request[sent:])
    except (BrokenPipeError, ConnectionResetError):
        return


def _forward_signals(connection: socket.socket) -> None:
    def forward(number: int, _: object) -> None:
        try:
            connection.send(bytes([number]))
        except OSError:
            return  # the run has ended; its answer is on the way

    for number in wire.FORWARDED:
        signal.signal(number, forward)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the connection ended")
        data += part
    return data


def _say(text: str, code: int) -> int:
    print(text if text is _USAGE else f"glexec: {text}", file=sys.stderr)
    return code
