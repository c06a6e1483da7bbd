"""The carrier as a process of this account, in a sandbox of the test's: what a switch would start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from airpanda.pilot.transfers.mover import program
from airpanda.pilot.transfers.plan import Transfer


class Carrier:
    """``fetch`` and ``send`` are rounds of one transfer; what it said comes back as plain values."""

    def __init__(
        self,
        root: Path,
        *,
        ca_dir: Path = Path("/nowhere"),
        proxy: Path | None = None,
        patch: str = "",
        path: str = os.environ["PATH"],
    ) -> None:
        """``patch``: statements before its start, such as shorter times."""
        self._patch = patch
        self.sandbox = root / "sandbox"
        self.sandbox.mkdir(mode=0o700)
        self._ca_dir = ca_dir
        self._environment = {"PATH": path, "HOME": str(self.sandbox)}
        if proxy is not None:
            self._environment["X509_USER_PROXY"] = str(proxy)
        self.complaint = ""

    def fetch(self, url: str, lfn: str = "a", **known: Any) -> dict[str, Any]:
        max_bytes = known.pop("max_bytes", 10**9)
        return self.round([Transfer(lfn, "in", url, ".in.part", **known)], max_bytes=max_bytes)[0]

    def send(self, url: str, lfn: str = "a", *, max_bytes: int = 10**9) -> dict[str, Any]:
        return self.round([Transfer(lfn, "out", url, ".out.part")], max_bytes=max_bytes)[0]

    def start(self, transfers: list[Transfer], *, max_bytes: int = 10**9) -> subprocess.Popen[str]:
        (self.sandbox / ".program").write_bytes(program())
        plan = {
            "ca_dir": str(self._ca_dir),
            "max_bytes": max_bytes,
            "transfers": [each.to_wire() for each in transfers],
        }
        (self.sandbox / ".plan").write_text(json.dumps(plan))
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", *self._program()],
            cwd=self.sandbox,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _program(self) -> list[str]:
        files = [".plan", ".program"]
        if not self._patch:
            return [".program", *files]
        start = f"import sys; sys.path.insert(0, '.program')\n{self._patch}\n"
        return ["-c", f"{start}from airpanda.pilot.carrier.main import main; sys.exit(main({files}))"]

    def round(self, transfers: list[Transfer], *, max_bytes: int = 10**9) -> list[dict[str, Any]]:
        process = self.start(transfers, max_bytes=max_bytes)
        out, self.complaint = process.communicate(timeout=120)
        assert process.returncode == 0, self.complaint
        return [json.loads(line) for line in out.splitlines()]

    def left(self) -> list[str]:
        """What lies in the sandbox."""
        return sorted(path.name for path in self.sandbox.iterdir())
