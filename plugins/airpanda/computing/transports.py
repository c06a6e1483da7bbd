"""Where commands of a computing element run: one program, bytes in, bytes out, bounded in time and size."""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from airpanda.computing.elements import CEUnavailableError, InvalidDescriptionError

MAX_OUTPUT_BYTES = 64 * 1024 * 1024
_CHUNK = 65536
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}


class AnswerLostError(CEUnavailableError):
    """The command was sent, and how it ended is not known: it may have done its work, or still do it."""

    code = "ce-answer-lost"


@dataclass(frozen=True)
class Completed:
    """How a command ended. ``exit_code`` is negative where a signal ended it."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Transport(Protocol):
    """Runs programs beside a batch system. May be used by several threads."""

    def run(self, argv: Sequence[str], stdin: bytes = b"", *, timeout_s: float) -> Completed:
        """Run one program to its end, whatever it does with its standard input.

        Raises:
            InvalidDescriptionError: an argument cannot be one.
            AnswerLostError: no end within the time, more output than a bound, or a broken connection after the start.
            CEUnavailableError: it cannot be started, and did not start.
        """

    def close(self) -> None:
        """Let go of what is held open. A later ``run`` opens it again."""


def command_line(argv: Sequence[str]) -> str:
    """What a remote POSIX shell must read to run exactly this argv. The only place that writes shell words.

    Raises:
        InvalidDescriptionError: empty, or an argument holds a NUL, which no argument can.
    """
    if not argv or any("\0" in word for word in argv):
        raise InvalidDescriptionError("a command needs a program, and no argument may hold a NUL character")
    return shlex.join(argv)


class LocalTransport:
    """Programs on this machine, each in a session of its own with a plain environment.

    Args:
        prefix: an argv put in front, such as a program that enters a node or an account.
    """

    def __init__(self, prefix: Sequence[str] = (), *, max_output_bytes: int = MAX_OUTPUT_BYTES) -> None:
        self._prefix = tuple(prefix)
        self._max_output_bytes = max_output_bytes

    def run(self, argv: Sequence[str], stdin: bytes = b"", *, timeout_s: float) -> Completed:
        command_line(argv)
        try:
            process = subprocess.Popen(
                [*self._prefix, *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise CEUnavailableError(f"{[*self._prefix, *argv][0]} cannot be started: {error.strerror}") from error
        try:
            return _converse(process, stdin, timeout_s, self._max_output_bytes)
        finally:
            _end(process)

    def close(self) -> None:
        """Nothing is held open."""


def _converse(process: subprocess.Popen[bytes], stdin: bytes, timeout_s: float, max_bytes: int) -> Completed:
    """Write and read at once, so that neither side can wait for the other for ever."""
    end = time.monotonic() + timeout_s
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise CEUnavailableError("a program was started without pipes")
    written = {process.stdout: bytearray(), process.stderr: bytearray()}
    left = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for stream in written:
            selector.register(stream, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                raise AnswerLostError(f"a command did not end within {timeout_s:.0f} s and was stopped")
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    left = _write(process, left)
                    if not left:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                data = os.read(key.fd, _CHUNK)
                written[key.fileobj] += data  # type: ignore[index]
                if not data:
                    selector.unregister(key.fileobj)
            if sum(map(len, written.values())) > max_bytes:
                raise AnswerLostError(f"a command wrote more than {max_bytes} bytes and was stopped")
    try:
        code = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise AnswerLostError(f"a command did not end within {timeout_s:.0f} s and was stopped") from None
    return Completed(code, bytes(written[process.stdout]), bytes(written[process.stderr]))


def _write(process: subprocess.Popen[bytes], left: memoryview) -> memoryview:
    """What is left afterwards; a program that does not want more gets no more."""
    if process.stdin is None or not left:
        return left[:0]
    try:
        return left[os.write(process.stdin.fileno(), left[:_CHUNK]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """No pipe and no process stays, whatever happened."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
