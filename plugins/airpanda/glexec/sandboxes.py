"""What both switchers do in the same way: a command through the switch, and files in and out by tar."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Optional

from airpanda.core.errors import AirpandaError, IdentitySwitchError
from airpanda.glexec.archive import check_names, pack, unpack

PATH = "/usr/local/bin:/usr/bin:/bin"
TOOL_TIMEOUT_S = 600
_TAR_CODES = (0, 1, 2)
"""All there; one has changed meanwhile; one is missing, which the result shows. Source: tar(1)."""
_CLEAR = 'chmod -R u+rwX -- "$0" 2>/dev/null; exec find "$0" -mindepth 1 -delete'


class SandboxTools:
    """Files of a sandbox, moved by commands that ``_tool`` starts as the sandbox's owner."""

    def _tool(self, argv: Sequence[str], proxy: Path, *, cwd: Path, stdin: Optional[IO[bytes]] = None) -> Tool:
        raise NotImplementedError

    def put(self, sandbox: Path, proxy: Path, files: Mapping[str, Path]) -> None:
        with pack(files) as archive:
            argv = ["/bin/tar", "-x", "-f", "-", "-C", str(sandbox)]
            code = self._tool(argv, proxy, cwd=sandbox.parent, stdin=archive).finish()
        if code != 0:
            raise IdentitySwitchError(f"the files could not be put into the sandbox: tar ended with {code}")

    def get(self, sandbox: Path, proxy: Path, names: Sequence[str], into: Path, *, max_bytes: int) -> dict[str, Path]:
        wanted = check_names(names)
        if not wanted:
            return {}
        argv = ["/bin/tar", "-c", "--no-recursion", "-f", "-", "-C", str(sandbox), "--", *wanted]
        tool = self._tool(argv, proxy, cwd=sandbox.parent)
        try:
            found = unpack(_Timed(tool.output, TOOL_TIMEOUT_S), wanted, into, max_bytes=max_bytes)
        except AirpandaError:
            tool.abandon()
            raise
        code = tool.finish()
        if code not in _TAR_CODES:  # somebody has killed it, or the launcher: what is not in the result may be there
            raise IdentitySwitchError(f"the files could not be fetched from the sandbox: tar ended with {code}")
        return found

    def remove(self, sandbox: Path, proxy: Path) -> None:
        if not sandbox.exists():
            return
        self._tool(["/bin/sh", "-c", _CLEAR, str(sandbox)], proxy, cwd=sandbox.parent).finish()
        try:
            sandbox.rmdir()
            for left in sandbox.parent.iterdir():
                left.unlink()
            sandbox.parent.rmdir()
        except OSError as error:
            raise IdentitySwitchError(f"the sandbox {sandbox} could not be removed: {error.strerror}") from error


class _Timed:
    """A pipe that is an error when it is not at its end in time."""

    def __init__(self, pipe: IO[bytes], timeout_s: float) -> None:
        self._descriptor = pipe.fileno()
        self._deadline = time.monotonic() + timeout_s
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def read(self, size: int, /) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0 or not self._poll.poll(1000 * left):
            raise IdentitySwitchError("the files of the payload did not come in time")
        return os.read(self._descriptor, size)


class Tool:
    """A short command with its output as a stream. ``finish`` or ``abandon`` must be called."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdin: Optional[IO[bytes]] = None
    ) -> None:
        self.message = ""
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        try:
            self._popen = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=stdin or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                start_new_session=True,
            )
        except OSError as error:
            self._messages.close()
            raise IdentitySwitchError(f"{argv[0]} cannot be started: {error.strerror}") from error
        if self._popen.stdout is None:
            raise IdentitySwitchError(f"{argv[0]} has no output")
        self.output: IO[bytes] = self._popen.stdout

    def finish(self) -> int:
        """Read what is left of the output, wait, and give the exit code; a tool that hangs is ended."""
        try:
            self._popen.communicate(timeout=TOOL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self.abandon()
            raise IdentitySwitchError(f"a command through the switch took over {TOOL_TIMEOUT_S} s") from error
        self._read_message()
        return self._popen.returncode

    def abandon(self) -> None:
        """Kill it."""
        self._popen.kill()
        self._popen.communicate()
        self._messages.close()

    def _read_message(self) -> None:
        """Keep the end of what it wrote to stderr, on one line."""
        with self._messages as messages:
            messages.seek(max(0, messages.seek(0, os.SEEK_END) - 500))
            self.message = " ".join(messages.read().decode(errors="replace").split())


def open_path(directory: Path) -> None:
    """Make a directory and its parents passable for other accounts, as far as they are ours (mkgltempdir).

    For root everything would be "ours": then only the directory itself is changed.
    """
    for place in (directory, *directory.parents) if os.geteuid() != 0 else (directory,):
        status = place.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o001:
            place.chmod((status.st_mode & 0o7777) | 0o111)
