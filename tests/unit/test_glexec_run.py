"""What the launcher asks before it maps anybody, in whatever way; no process, no file of a site."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from airpanda.core.errors import NotAuthorisedError
from airpanda.core.secret import Secret
from airpanda.glexec import mapping
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.launcher import audit, run
from airpanda.glexec.launcher.credential import Identity
from airpanda.glexec.launcher.identity import Caller
from airpanda.glexec.launcher.request import Request
from airpanda.glexec.launcher.sources import Source

DN, FQAN = "/O=Grid/CN=Mallory", "/vo/Role=bad/Capability=NULL"
IDENTITY = Identity(DN, "/O=Grid/CN=CA", "1", "ff", (FQAN,), False, datetime.now(UTC), Secret(b"pem"))
REQUEST = Request(Caller(1001, 1001, (), "pilot", "/home/pilot"), ("/bin/true",), {}, (0, 1, 2), 3, "socket")


class Asked(Exception):
    """A mapper was asked for an account."""


class NoMapper(mapping.Mapper):
    def __init__(self, config: LauncherConfig) -> None:
        pass

    def map(self, dn: str, fqans: Sequence[str], pem: Secret[bytes]) -> mapping.Mapping:
        raise Asked


@pytest.fixture(name="resolve")
def _resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    monkeypatch.setattr(run, "read_proxy", lambda *args: Secret(b"proxy"))
    monkeypatch.setattr(run, "_identifier", lambda: lambda *args: IDENTITY)
    monkeypatch.setattr(run, "_MAPPERS", dict.fromkeys(run._MAPPERS, NoMapper))

    def resolve(way: str, banned: str) -> None:
        monkeypatch.setattr(mapping, "read_trusted", lambda path: banned)
        place = Path("/etc/x")
        config = LauncherConfig(("pilot",), place, place, mapping=way, ban_file=place)
        run.resolve(REQUEST, config, {})

    return resolve


@pytest.mark.parametrize("way", list(run._MAPPERS))
@pytest.mark.parametrize("banned", [f'"{DN}"\n', f'"{FQAN}"\n', '"/O=Grid/*"\n'])
def test_a_ban_comes_before_every_way_of_mapping(resolve: Callable[[str, str], None], way: str, banned: str) -> None:
    with pytest.raises(NotAuthorisedError, match="banned"):
        resolve(way, banned)
    with pytest.raises(Asked):
        resolve(way, '"/O=Grid/CN=Somebody Else"\n')


def test_a_preparation_that_hangs_ends_in_the_sites_error_and_on_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    config = LauncherConfig(("pilot",), Path("/etc/x"), log, syslog=False)
    monkeypatch.setattr(run, "read_config", lambda path: config)
    monkeypatch.setattr(audit, "check_trusted", lambda path: None)
    monkeypatch.setattr(run, "check_caller", lambda caller, config: time.sleep(60))
    monkeypatch.setattr(run, "_PREPARATION_S", 1)
    before = signal.getsignal(signal.SIGALRM)
    try:
        code, message = run.conduct(REQUEST, tmp_path / "conf", cast(Source, None))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert code == 202
    assert "hangs" in message
    (record,) = map(json.loads, log.read_text().splitlines())
    assert (record["rc"], record["identity_switched"], record["caller"]) == (202, False, "pilot")
