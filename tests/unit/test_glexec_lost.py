"""Who says that nothing has run: the client and the direct launcher, each around a launcher that breaks off."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.need import need_root

from airpanda.glexec import client, wire
from airpanda.glexec.launcher import direct, run
from airpanda.glexec.launcher.sources import OwnSignals


def in_a_child(act: Callable[[], object]) -> int:
    """The exit code of a forked process that does this."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = int(str(act()))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", 202),
        (wire.STARTED[:2], 202),
        (wire.STARTED, 137),
        (wire.STARTED + b"\0\0", 137),
        (wire.STARTED + wire.HEADER.pack(9) + b"{", 137),
        (wire.STARTED + wire.framed(b"nonsense"), 137),
        (wire.STARTED + wire.frame({"exit": 3, "message": ""}), 3),
        (wire.STARTED + wire.frame({"exit": 126, "message": "no such file"}), 126),
        (wire.frame({"exit": 203, "message": "who?"}), 203),
    ],
)
def test_a_client_says_202_only_where_nothing_ran(tmp_path: Path, said: bytes, code: int) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            assert in_a_child(lambda: client.main(str(path), ["/bin/true"])) == code
        finally:
            thread.join(10)


@pytest.mark.root
@pytest.mark.parametrize(("started", "code"), [(False, 202), (True, 137)])
@pytest.mark.parametrize("error", [MemoryError(), OSError("gone"), KeyError("x")])
def test_a_direct_launcher_that_fails_says_whether_anything_ran(
    monkeypatch: pytest.MonkeyPatch, error: Exception, started: bool, code: int
) -> None:
    def conduct(request: object, config_path: Path, source: OwnSignals) -> tuple[int, str]:
        if started:
            source.started()
        raise error

    need_root()
    monkeypatch.setattr(run, "conduct", conduct)
    assert in_a_child(lambda: direct.main(Path("/nowhere"), ["/bin/true"])) == code


@pytest.mark.root
def test_a_direct_launcher_whose_stderr_is_closed_keeps_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    need_root()
    monkeypatch.setattr(run, "conduct", lambda *_: (203, "no"))

    def act() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)
        direct.main(Path("/nowhere"), ["/bin/true"])

    assert in_a_child(act) == 203
