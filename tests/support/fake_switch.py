"""A switch for tests of the pilot: runs payloads as this account, honestly saying so, and fails on request."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airpanda.core.errors import IdentitySwitchError
from airpanda.core.identity import Account
from airpanda.glexec.ports import LaunchRecord, PayloadOutcome, ProcessSeen, Usage
from airpanda.glexec.proctree import descendants


def this_account() -> Account:
    entry = pwd.getpwuid(os.getuid())
    return Account(entry.pw_name, entry.pw_uid, (entry.pw_gid,))


class FakePayload:
    def __init__(self, process: subprocess.Popen[bytes], copy: Path, *, proven: bool) -> None:
        self._copy = copy
        self.account = this_account()
        self.record = LaunchRecord("fake")
        self.identity_proven = proven
        self._process = process
        self._begin = time.monotonic()

    def wait(self, timeout_s: float) -> PayloadOutcome | None:
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._copy.unlink(missing_ok=True)
        wall = time.monotonic() - self._begin
        number = -code if code < 0 else None
        return PayloadOutcome(128 - code if code < 0 else code, number, wall, 0.0, 1024, self.account, False)

    def kill(self, grace_s: float) -> None:
        for number, limit in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
            try:
                self._process.wait(limit)
            except subprocess.TimeoutExpired:
                continue
            return

    def usage(self) -> Usage:
        return Usage(cpu_s=0.0, rss_kib=1024)

    def processes(self) -> list[ProcessSeen]:
        return descendants(os.getpid())


@dataclass
class FakeSwitcher:
    """``refuse`` names the step that raises: preflight, make_sandbox, put, launch."""

    kind: str = "fake"
    switches: bool = False
    contains: bool = True
    refuse: str = ""
    exit_code: int = 203
    proven: bool = True
    launched: list[dict[str, Any]] = field(default_factory=list)
    sandboxes: list[Path] = field(default_factory=list)
    payloads: list[FakePayload] = field(default_factory=list)

    def _step(self, name: str) -> None:
        if self.refuse == name:
            raise IdentitySwitchError(f"refused at {name}", exit_code=self.exit_code)

    def preflight(self, proxy: Path) -> Account:
        self._step("preflight")
        return this_account()

    def make_sandbox(self, parent: Path, proxy: Path) -> Path:
        self._step("make_sandbox")
        self.sandboxes.append(Path(tempfile.mkdtemp(dir=parent)))
        return self.sandboxes[-1]

    def put(self, sandbox: Path, proxy: Path, files: Mapping[str, Path]) -> None:
        self._step("put")
        for name, path in files.items():
            shutil.copy(path, sandbox / name)

    def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        sandbox: Path,
        proxy: Path,
        stdout: Path,
        stderr: Path,
        label: str,
    ) -> FakePayload:
        self._step("launch")
        copy = Path(shutil.copy(proxy, sandbox / f".x509up-{secrets.token_hex(4)}"))
        env = {**env, "HOME": str(sandbox), "X509_USER_PROXY": str(copy)}
        with open(stdout, "ab") as out:
            process = subprocess.Popen(argv, cwd=sandbox, env=env, stdout=out, stderr=out, start_new_session=True)
        payload = FakePayload(process, copy, proven=self.proven)
        if label.endswith(" pilot"):  # a command of the pilot's own in the sandbox
            return payload
        self.launched.append({"argv": list(argv), "env": env, "proxy": proxy.read_text(), "label": label})
        self.payloads.append(payload)
        return payload

    def get(self, sandbox: Path, proxy: Path, names: Sequence[str], into: Path, *, max_bytes: int) -> dict[str, Path]:
        found = [name for name in names if (sandbox / name).is_file()]
        return {name: Path(shutil.copy(sandbox / name, into / name)) for name in found}

    def remove(self, sandbox: Path, proxy: Path) -> None:
        if sandbox.exists():
            shutil.rmtree(sandbox)
