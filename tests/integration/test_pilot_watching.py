"""Renewal and sandbox limits in the life of a pilot: what the payload sees, and what is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.fake_dispatcher import DN, FakeDispatcher, fake_dispatcher, make_job
from support.fake_switch import FakeSwitcher
from support.pilot_rig import FakeProxy, Rig

from airpanda.core.errors import IdentitySwitchError
from airpanda.myproxy.errors import CredentialMissingError
from airpanda.pilot import renewal


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(renewal, "FIRST_PAUSE_S", 0.1)
    with fake_dispatcher() as fake:
        yield Rig(fake, tmp_path)
        assert fake.errors == [], "the pilot sent what the dispatcher does not accept"


class NumberedProxy(FakeProxy):
    number = 0

    def write(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.write_text(f"PROXY {self.number} OF {self.identity}\n")


class Server:
    """Grants proxies of some seconds, one after another; after ``good`` of them it refuses."""

    def __init__(self, seconds: float, good: int = 1000) -> None:
        self.seconds, self.good, self.granted = seconds, good, 0

    def __call__(self, pointer: Any, lifetime: timedelta) -> FakeProxy:
        if self.granted >= self.good:
            raise CredentialMissingError("destroyed by its owner")
        self.granted += 1
        proxy = NumberedProxy(DN, datetime.now(UTC) + timedelta(seconds=self.seconds))
        proxy.number = self.granted
        return proxy


def codes(fake: FakeDispatcher) -> list[tuple[int, str]]:
    return [(error.code, str(error.blame)) for error in fake.final.errors]


def test_a_destroyed_credential_ends_the_payload_at_its_proxys_end_and_says_so(rig: Rig) -> None:
    rig.retrieve = Server(5.0, good=1)
    rig.options["proxy_margin_s"] = 1.0
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "failed"]
    assert codes(rig.fake) == [(1370, "user")]
    assert "destroyed by its owner" in rig.fake.final.errors[0].diag
    assert rig.leftovers() == []


def test_a_renewed_proxy_that_cannot_be_handed_over_ends_the_payload_as_the_sites_fault(rig: Rig) -> None:
    class NoMore(FakeSwitcher):
        def launch(self, *args: Any, **options: Any) -> Any:
            if options["label"].endswith(" pilot"):
                raise IdentitySwitchError("the launcher is gone")
            return super().launch(*args, **options)

    rig.switcher = NoMore()
    rig.retrieve = Server(5.0)
    rig.options["proxy_margin_s"] = 1.0
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    rig.run()
    assert codes(rig.fake) == [(1370, "site")]
    assert "the launcher is gone" in rig.fake.final.errors[0].diag


def test_a_payload_finds_a_newer_proxy_in_the_place_of_the_old_one(rig: Rig) -> None:
    watch = (
        'a=$(cat "$X509_USER_PROXY"); n=0\n'
        'while b=$(cat "$X509_USER_PROXY") && [ "$a" = "$b" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done\n'
        'echo "$a"; echo "$b"; stat -c %a "$X509_USER_PROXY"\n'
        "while [ $(ls -A | grep -c x509up) != 1 ] && [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done\n"
        "ls -A | grep -c x509up"
    )
    rig.retrieve = Server(6.0)
    rig.options["proxy_margin_s"] = 1.5  # three of them must be left when the payload begins
    rig.fake.jobs = [make_job(argv=["sh", "-ec", watch])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "finished"]
    lines = rig.fake.files["7/1/payload.log"].decode().splitlines()
    assert lines == [f"PROXY 1 OF {DN}", f"PROXY 2 OF {DN}", "600", "1"]
    events = [report.credential_event for report in rig.fake.reports if report.credential_event]
    assert events == ["retrieved", "renewed"]
    assert rig.leftovers() == []


def test_a_sandbox_over_its_limit_ends_the_payload(rig: Rig) -> None:
    rig.options["scan_every_s"] = 0.1
    fill = "head -c 20000000 /dev/zero > big; echo filled; sleep 60"
    rig.fake.jobs = [make_job(argv=["sh", "-c", fill], disk_mib=10)]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "failed"]
    assert codes(rig.fake) == [(1104, "user")]
    assert rig.fake.files["7/1/payload.log"] == b"filled\n"
    assert rig.leftovers() == []


def test_a_payload_without_a_sign_of_life_is_ended(rig: Rig) -> None:
    rig.options.update(scan_every_s=0.1, looping_s=3.0)
    rig.fake.jobs = [make_job(argv=["sleep", "60"])]
    rig.run()
    assert codes(rig.fake) == [(1150, "user")]


def test_a_payload_that_only_writes_files_is_alive(rig: Rig) -> None:
    rig.options.update(scan_every_s=0.1, looping_s=4.0)
    work = "i=0; while [ $i -lt 10 ]; do echo $i > state; sleep 1; i=$((i+1)); done"
    rig.fake.jobs = [make_job(argv=["sh", "-c", work])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "finished"]


@pytest.mark.parametrize(
    "script",
    [
        'rm -rf "$HOME"; sleep 3',
        "exec >&- 2>&- <&-; sleep 1",
        "rm -f .x509up-*; sleep 3",
        "ln -s /etc/passwd .x509up-00000000; sleep 3",
        "i=0; while [ $i -lt 3000 ]; do : > f$i; i=$((i+1)); done; sleep 3",
    ],
    ids=["sandbox deleted", "descriptors closed", "proxy deleted", "link as a proxy", "many files"],
)
def test_a_payload_that_harms_itself_harms_nobody_else(rig: Rig, script: str) -> None:
    before = Path("/etc/passwd").read_bytes()
    rig.retrieve = Server(6.0)
    rig.options.update(proxy_margin_s=1.5, scan_every_s=0.1)
    rig.fake.jobs = [make_job(7, argv=["sh", "-c", script]), make_job(8, argv=["echo", "next"])]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "finished"] * 2
    assert rig.fake.files["8/1/payload.log"] == b"next\n"
    assert Path("/etc/passwd").read_bytes() == before
    assert [path for path in rig.leftovers() if "job-" in path.name] == []
