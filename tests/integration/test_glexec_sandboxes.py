"""Files through the switch when somebody kills what moves them: nothing is called missing that may be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from airpanda.core.errors import IdentitySwitchError
from airpanda.glexec.sandboxes import SandboxTools, Tool


class Interrupted(SandboxTools):
    """Runs its commands as this account; after the command comes ``then``."""

    def __init__(self, then: str) -> None:
        self._then = then

    def _tool(self, argv: Sequence[str], proxy: Path, *, cwd: Path, stdin: IO[bytes] | None = None) -> Tool:
        return Tool(["/bin/sh", "-c", f'"$@"; {self._then}', "sh", *argv], env=_ENV, cwd=cwd, stdin=stdin)


_ENV: Mapping[str, str] = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "out").write_text("made")
    (tmp_path / "into").mkdir()
    return tmp_path / "sandbox"


def get(tools: Interrupted, sandbox: Path, *names: str) -> dict[str, Path]:
    return tools.get(sandbox, sandbox, names, sandbox.parent / "into", max_bytes=10**6)


@pytest.mark.parametrize("then", ["kill -KILL $$", "kill -TERM $$", "exit 137", "exit 64", "exit 204"])
def test_a_killed_mover_is_an_error_and_no_missing_file(sandbox: Path, then: str) -> None:
    with pytest.raises(IdentitySwitchError, match="could not be fetched"):
        get(Interrupted(then), sandbox, "out")


def test_a_missing_file_is_no_error(sandbox: Path) -> None:
    found = get(Interrupted("exit $?"), sandbox, "out", "absent")
    assert {name: path.read_text() for name, path in found.items()} == {"out": "made"}
