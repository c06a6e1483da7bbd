"""A pilot in this process against a fake dispatcher: real code but for the switch and MyProxy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airpanda.core.identity import IdentityPolicy
from airpanda.core.secret import Secret
from airpanda.pilot.agent import Agent
from airpanda.pilot.config import PilotConfig, Slot
from airpanda.pilot.stopping import Stop
from airpanda.pilot.wire import Credential
from support.fake_dispatcher import DN, PASSPHRASE, TOKEN, FakeDispatcher
from support.fake_switch import FakeSwitcher


@dataclass
class FakeProxy:
    """A retrieved proxy, as far as the pilot looks at it."""

    identity: str = DN
    not_after: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(days=1))

    def write(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.write_text("PROXY OF " + self.identity)


def good_myproxy(pointer: Credential, lifetime: timedelta) -> FakeProxy:
    assert pointer.passphrase.reveal() == PASSPHRASE
    return FakeProxy(pointer.username)


@dataclass
class Rig:
    """Everything of one pilot. ``run`` lives its whole life; ``start`` does so in a thread."""

    fake: FakeDispatcher
    root: Path
    switcher: Any = field(default_factory=FakeSwitcher)
    retrieve: Callable[[Credential, timedelta], Any] = good_myproxy
    stop: Stop = field(default_factory=Stop)
    options: dict[str, Any] = field(default_factory=dict)
    code: int | None = None

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def workdir(self) -> Path:
        return self.root / "pilot"

    def config(self) -> PilotConfig:
        self.scratch.mkdir(mode=0o711, exist_ok=True)
        self.workdir.mkdir(mode=0o700, exist_ok=True)
        values: dict[str, Any] = {
            "pilot_id": 1,
            "tag": "t",
            "token": Secret(TOKEN),
            "queue": "TEST",
            "dispatcher_url": self.fake.url,
            "ca_dir": "/nowhere",
            "proxy": "/nowhere",
            "identity_policy": IdentityPolicy.OPTIONAL,
            "slot": Slot(cores=1, memory_mib=2000, disk_mib=5000, walltime_s=3600),
            "workdir": self.workdir,
            "scratch": self.scratch,
            "idle_limit_s": 0.3,
            "kill_grace_s": 1.0,
            "environment": {"PATH": "/usr/bin:/bin"},
        }
        return PilotConfig(**{**values, **self.options})

    def run(self) -> int:
        self.code = Agent(self.config(), self.stop, lambda: self.switcher, self.retrieve).run()
        return self.code

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        return thread

    def leftovers(self) -> list[Path]:
        """What the pilot left in its directories: must be nothing."""
        return [*self.scratch.iterdir(), *self.workdir.iterdir()]
