"""A pilot and a job's files at URLs: a real carrier, no real switch (``test_pilot_files_real_chain`` has one)."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.bad_storage import BadStorage, Handler, bad_storage
from support.fake_dispatcher import DN, FakeDispatcher, fake_dispatcher, make_job
from support.fake_switch import FakeSwitcher
from support.launcher import wait_for
from support.need import need_program
from support.pilot_rig import Rig
from support.pki import Pki, pki

from airpanda.core.identity import Account
from airpanda.glexec.contained import ContainedSwitcher
from airpanda.myproxy.errors import CredentialMissingError
from airpanda.pilot import errors, job, renewal
from airpanda.pilot.carrier import limit
from airpanda.pilot.transfers import plan, verdict
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import create_proxy

__all__ = ["pki"]

CONTENT = b"muons\n" * 10


class Switching(FakeSwitcher):
    """It says that it switches, as far as the pilot asks before a job."""

    def preflight(self, proxy: Path) -> Account:
        return Account("another", os.getuid() + 1, ())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(verdict, "FIRST_PAUSE_S", 0.05)
    with fake_dispatcher() as fake:
        yield Rig(fake, tmp_path, switcher=Switching(switches=True))
        assert fake.errors == [], "the pilot sent what the dispatcher does not accept"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    (place / "in").write_bytes(CONTENT)
    return place


def first_error(fake: FakeDispatcher) -> tuple[int, str, str]:
    error = fake.final.errors[0]
    return error.code, str(error.blame), error.diag


def test_a_way_that_this_pilot_does_not_know_is_refused_before_the_start(rig: Rig, monkeypatch: Any) -> None:
    monkeypatch.setattr(plan, "SCHEMES", frozenset({"file"}))
    rig.fake.jobs = [make_job(outputs=[{"lfn": "d", "destination": "root://se.example//d/"}])]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "failed"]
    assert first_error(rig.fake)[:2] == (1313, "site")
    assert "d: root://se.example//d/d" in first_error(rig.fake)[2]
    assert rig.switcher.launched == []
    assert rig.leftovers() == []


def test_without_a_switch_no_file_of_the_node_moves(rig: Rig, data: Path) -> None:
    rig.switcher = FakeSwitcher()
    rig.fake.jobs = [make_job(argv=["cat", "d"], inputs=[{"lfn": "d", "source": f"file://{data}/in"}])]
    rig.run()
    assert rig.fake.statuses == ["starting", "failed"]
    assert first_error(rig.fake)[:2] == (1338, "user")
    assert rig.switcher.launched == []


def test_every_input_that_does_not_come_is_told_and_nothing_starts(rig: Rig, data: Path) -> None:
    names = {"gone": "gone", "wrong": "in", "dir": ""}
    inputs = [{"lfn": lfn, "source": f"file://{data}/{name}"} for lfn, name in names.items()]
    inputs[1]["sha256"] = "0" * 64
    rig.fake.jobs = [make_job(inputs=inputs)]
    rig.run()
    assert rig.fake.statuses == ["starting", "failed"]
    told = {error.diag.split(": ")[1]: (error.code, error.blame) for error in rig.fake.final.errors}
    assert told == {"gone": (1331, "user"), "wrong": (1171, "user"), "dir": (1103, "user")}
    wrong = next(error.diag for error in rig.fake.final.errors if error.code == 1171)
    assert f"wrong: file://{data}/in: its sha256 is " in wrong
    assert "(tried 2 times)" in wrong
    assert rig.switcher.launched == []
    assert rig.leftovers() == []


def test_an_input_that_appears_meanwhile_is_not_waited_for(rig: Rig, data: Path) -> None:
    """Missing is missing: another try of the same pilot would only hold the slot."""
    rig.fake.jobs = [make_job(inputs=[{"lfn": "d", "source": f"file://{data}/gone"}])]
    rig.run()
    assert "tried" not in first_error(rig.fake)[2]


def test_inputs_over_the_jobs_disk_are_the_owners_fault(rig: Rig, data: Path) -> None:
    with (data / "big").open("wb") as file:
        file.truncate(11 * 2**20)
    rig.fake.jobs = [make_job(disk_mib=10, inputs=[{"lfn": "d", "source": f"file://{data}/big"}])]
    rig.run()
    assert first_error(rig.fake)[:2] == (1168, "user")


def test_outputs_that_cannot_lie_where_they_should_are_told_and_the_others_are_kept(rig: Rig, data: Path) -> None:
    outputs = [
        {"lfn": "a", "destination": f"file://{data}/"},
        {"lfn": "b", "destination": f"file://{data}/nowhere/b"},
        {"lfn": "c", "destination": f"file://{data}/c"},
        {"lfn": "d"},
    ]
    rig.fake.jobs = [make_job(argv=["sh", "-c", "echo x > a; echo x > b; echo x > d"], outputs=outputs)]
    rig.run()
    assert rig.fake.final.job_status == "failed"
    told = {error.diag.split(": ")[1]: (error.code, error.blame) for error in rig.fake.final.errors}
    assert told == {"b": (1137, "user"), "c": (1165, "user")}
    assert [each.lfn for each in rig.fake.final.stored] == ["a"]
    assert {name for name in rig.fake.files if "log" not in name} == {"7/1/d"}
    assert sorted(os.listdir(data)) == ["a", "in"]


def test_a_payload_that_failed_has_no_outputs(rig: Rig, data: Path) -> None:
    outputs = [{"lfn": "a", "destination": f"file://{data}/"}]
    rig.fake.jobs = [make_job(argv=["sh", "-c", "echo x > a; exit 3"], outputs=outputs)]
    rig.run()
    assert rig.fake.final.stored == []
    assert os.listdir(data) == ["in"]


def test_a_switch_that_fails_for_the_carrier_hands_the_job_back(rig: Rig, data: Path) -> None:
    class Refusing(Switching):
        def launch(self, argv: Any, **more: Any) -> Any:
            self.refuse = "launch" if more["label"].endswith(" pilot") else ""
            return super().launch(argv, **more)

    rig.switcher = Refusing(switches=True)
    rig.fake.jobs = [make_job(inputs=[{"lfn": "d", "source": f"file://{data}/in"}])]
    rig.run()
    assert rig.fake.final.job_status == "activated"
    assert first_error(rig.fake)[0] == 1226


def test_a_carrier_that_cannot_run_is_told_with_its_words(rig: Rig, data: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("airpanda.pilot.transfers.mover.program", lambda: b"no archive")
    rig.fake.jobs = [make_job(inputs=[{"lfn": "d", "source": f"file://{data}/in"}])]
    rig.run()
    code, blame, diag = first_error(rig.fake)
    assert (code, blame) == (1099, "system")
    assert "the carrier ended with 1: " in diag
    assert "(tried 4 times)" in diag


@pytest.mark.parametrize("how", ["talks", "sleeps"])
def test_a_carrier_that_does_not_behave_is_ended(rig: Rig, data: Path, monkeypatch: Any, how: str) -> None:
    """It runs as the owner, who may have had a hand in it."""
    program = {"talks": "while True: print('x' * 1000)", "sleeps": "import time; time.sleep(60)"}[how]
    monkeypatch.setattr("airpanda.pilot.transfers.mover.program", lambda: program.encode())
    monkeypatch.setattr("airpanda.pilot.transfers.mover._MAX_SAID", 10**6)
    monkeypatch.setattr(limit, "LEAST_S", 0.2)
    monkeypatch.setattr("airpanda.pilot.transfers.mover.KILL_GRACE_S", 10.0)
    monkeypatch.setattr(verdict, "TRIES", 1)
    rig.fake.jobs = [make_job(inputs=[{"lfn": "d", "source": f"file://{data}/in", "size": 1}])]
    began = time.monotonic()
    rig.run()
    assert time.monotonic() - began < 50
    assert first_error(rig.fake)[:2] == (1099, "system")
    assert "the carrier ended with 143" in first_error(rig.fake)[2]
    assert rig.leftovers() == []


def test_files_go_through_a_payload_and_are_reported_with_both_checksums(rig: Rig, data: Path) -> None:
    known = {"size": len(CONTENT), "adler32": f"{zlib.adler32(CONTENT):08x}"}
    rig.fake.inputs = {"x": b"from the dispatcher"}
    inputs = [
        {"lfn": "d", "source": f"file://{data}/in", "sha256": hashlib.sha256(CONTENT).hexdigest(), **known},
        {"lfn": "x", "source": "panda:1/x"},
    ]
    outputs = [{"lfn": "copy", "destination": f"file://{data}/"}, {"lfn": "names"}]
    command = "cat d > copy; ls -A > names; cat x"
    rig.fake.jobs = [make_job(argv=["sh", "-c", command], inputs=inputs, outputs=outputs)]
    rig.run()
    assert rig.fake.statuses == ["starting", "running", "finished"]
    (stored,) = rig.fake.final.stored
    assert (stored.lfn, stored.url, stored.size) == ("copy", f"file://{data}/copy", len(CONTENT))
    assert (stored.adler32, stored.sha256) == (known["adler32"], hashlib.sha256(CONTENT).hexdigest())
    assert (data / "copy").read_bytes() == CONTENT
    assert rig.fake.files["7/1/payload.log"] == b"from the dispatcher"
    seen = rig.fake.files["7/1/names"].decode().split()
    assert [name for name in seen if "airpanda" in name] == [], "the payload sees nothing of the carrier"
    assert rig.leftovers() == []


# --- over the network; the real proxies are in test_pilot_carrier_web ---


@pytest.fixture
def web_rig(rig: Rig, pki: Pki) -> Rig:
    """Its owner's proxy is a real one."""
    owner = ProxyCredential.from_files(*pki.user("alice"))
    rig.switcher = FakeSwitcher()
    rig.retrieve = lambda pointer, lifetime: Named(create_proxy(owner, lifetime=lifetime, now=datetime.now(UTC)))
    rig.options["ca_dir"] = str(pki.ca_dir)
    return rig


@dataclass
class Named:
    """A real proxy under the name that the fake dispatcher's jobs have."""

    proxy: ProxyCredential
    identity: str = DN

    @property
    def not_after(self) -> datetime:
        return self.proxy.not_after

    def write(self, path: Path) -> None:
        self.proxy.write(path)


def test_what_fails_for_a_while_is_tried_again(web_rig: Rig, pki: Pki) -> None:
    answers = [503, 500, 200]

    def script(handler: Handler) -> None:
        status = answers.pop(0) if handler.command == "GET" else 200
        handler.reply(status, CONTENT if status == 200 else b"", Retry_After="0")

    with bad_storage(pki, script) as server:
        web_rig.fake.jobs = [make_job(argv=["cat", "d"], inputs=[{"lfn": "d", "source": server.url()}])]
        web_rig.run()
    assert web_rig.fake.final.job_status == "finished"
    assert web_rig.fake.files["7/1/payload.log"] == CONTENT


def test_a_storage_that_stays_down_is_nobodys_fault_of_the_owners(web_rig: Rig, pki: Pki) -> None:
    with bad_storage(pki, lambda h: h.reply(503)) as server:
        web_rig.fake.jobs = [make_job(inputs=[{"lfn": "d", "source": server.url("d/a") + "?signature=canary"}])]
        web_rig.run()
        assert server.methods == ["GET"] * verdict.TRIES
    code, blame, diag = first_error(web_rig.fake)
    assert (code, blame) == (1099, "system")
    assert f"d: {server.url('d/a')}: localhost:{server.port} answered 503 (tried 4 times)" in diag
    assert "canary" not in diag


def slow_storage(seconds: float) -> Callable[[Handler], None]:
    """It takes so long to take a file, and has it then."""
    kept: dict[str, bytes] = {}

    def script(handler: Handler) -> None:
        if handler.command == "PUT":
            time.sleep(seconds)
            kept[handler.path] = handler.bad.seen[-1].body
            handler.reply(201)
        elif handler.command in ("GET", "HEAD"):
            handler.reply(200, kept.get(handler.path, b""))
        else:
            handler.reply(405 if handler.command in ("OPTIONS", "PROPFIND") else 204)

    return script


def store_slowly(rig: Rig, server: BadStorage) -> threading.Thread:
    """A job whose output is under way when this returns."""
    outputs = [{"lfn": "d", "destination": server.url()}]
    rig.fake.jobs = [make_job(argv=["sh", "-c", "echo x > d"], outputs=outputs)]
    thread = rig.start()
    wait_for(lambda: "PUT" in server.methods)
    return thread


@pytest.mark.parametrize("before_s", [0.0, 5.5], ids=["just begun", "under way for longer than the patience"])
def test_a_signal_lets_an_output_that_is_under_way_arrive(
    web_rig: Rig, pki: Pki, monkeypatch: Any, before_s: float
) -> None:
    monkeypatch.setattr(job, "STOPPING_PATIENCE_S", 5.0)
    with bad_storage(pki, slow_storage(before_s + 1.0)) as server:
        thread = store_slowly(web_rig, server)
        time.sleep(before_s)
        web_rig.stop._take(signal.SIGTERM, None)
        thread.join(60)
    assert web_rig.fake.final.job_status == "finished"
    assert [each.url for each in web_rig.fake.final.stored] == [server.url()]


@dataclass
class ShortLived:
    """A MyProxy server that grants proxies of some seconds, as often as ``good`` says."""

    owner: ProxyCredential
    good: int
    granted: int = 0

    def __call__(self, pointer: object, lifetime: timedelta) -> Named:
        if self.granted >= self.good:
            raise CredentialMissingError("destroyed by its owner")
        self.granted += 1
        return Named(create_proxy(self.owner, lifetime=timedelta(seconds=7), now=datetime.now(UTC)))


@pytest.mark.parametrize("good", [9, 1], ids=["renewed", "destroyed"])
def test_the_proxy_is_renewed_while_outputs_move(web_rig: Rig, pki: Pki, monkeypatch: Any, good: int) -> None:
    """The first output takes longer than its proxy lasts; the second one is sent by the same carrier."""
    monkeypatch.setattr(renewal, "FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(verdict, "TRIES", 1)
    web_rig.retrieve = server_of_proxies = ShortLived(ProxyCredential.from_files(*pki.user("alice")), good)
    web_rig.options["proxy_margin_s"] = 4.0
    with bad_storage(pki, slow_storage(8.0)) as server:
        outputs = [{"lfn": name, "destination": server.url(f"d/{name}")} for name in ("a", "b")]
        argv = ["sh", "-c", "echo x > a; echo x > b"]
        web_rig.fake.jobs = [make_job(argv=argv, outputs=outputs, walltime_s=2)]
        web_rig.run()
        peers = list(dict.fromkeys(each.peer for each in server.seen if each.method == "PUT"))
    events = [report.credential_event for report in web_rig.fake.reports if report.credential_event]
    told = [(error.code, str(error.blame)) for error in web_rig.fake.final.errors]
    assert server_of_proxies.granted >= min(good, 2)
    if good == 1:
        assert web_rig.fake.final.job_status == "failed"
        assert told[0] == (1370, "user")
        assert "destroyed by its owner" in first_error(web_rig.fake)[2]
    else:
        assert (web_rig.fake.final.job_status, told) == ("finished", [])
        assert len(peers) == 2, "each output was sent with the proxy of its time"
        assert events[:2] == ["retrieved", "renewed"]
    assert web_rig.leftovers() == []


def cut_off(fake: FakeDispatcher) -> None:
    """The gateway is away until the lease, of one second, and its grace are over; its clock is known to the second."""
    fake.down = True
    time.sleep(5.5)
    fake.down = False


@pytest.mark.parametrize("how", ["killed", "signal", "lease"])
def test_an_output_that_takes_too_long_after_that_is_given_up(
    web_rig: Rig, pki: Pki, monkeypatch: Any, how: str
) -> None:
    """And what lies at its place is left alone: it may be the next attempt's already."""
    monkeypatch.setattr(job, "STOPPING_PATIENCE_S", 0.5)
    web_rig.fake.lease_s = 1.0 if how == "lease" else 60.0
    with bad_storage(pki, slow_storage(60)) as server:
        thread = store_slowly(web_rig, server)
        began = time.monotonic()
        if how == "killed":
            web_rig.fake.command = "tobekilled"
        elif how == "lease":
            cut_off(web_rig.fake)
        else:
            web_rig.stop._take(signal.SIGTERM, None)
        thread.join(60)
        assert time.monotonic() - began < 50
        assert server.methods == ["OPTIONS", "PROPFIND", "PUT"]
    final = web_rig.fake.final
    assert (final.job_status, final.stored) == ("cancelled" if how == "killed" else "failed", [])
    assert first_error(web_rig.fake)[0] == {"killed": 1144, "signal": 1201, "lease": 1318}[how]
    assert web_rig.leftovers() == []


@pytest.mark.parametrize("with_bwrap", [True, False])
def test_without_a_switch_the_payloads_own_fence_is_around_the_carrier(
    web_rig: Rig, pki: Pki, data: Path, with_bwrap: bool
) -> None:
    """The real switcher of a queue that allows it; what is hidden from its payloads is hidden from the carrier."""
    bwrap = Path(need_program("bwrap", "bubblewrap")) if with_bwrap else None
    web_rig.switcher = ContainedSwitcher(bwrap, show=[pki.ca_dir])
    with bad_storage(pki, lambda h: h.reply(200, CONTENT)) as server:
        web_rig.fake.jobs = [make_job(argv=["cat", "d"], inputs=[{"lfn": "d", "source": server.url()}])]
        web_rig.run()
        assert "Alice Example" in server.seen[0].peer
    assert web_rig.fake.final.job_status == "finished", web_rig.fake.final.errors
    assert web_rig.fake.files["7/1/payload.log"].endswith(CONTENT)
    assert web_rig.leftovers() == []


@pytest.mark.parametrize("how", ["killed", "signal", "stale", "lease"])
def test_nobody_waits_for_a_transfer_that_hangs(web_rig: Rig, pki: Pki, how: str) -> None:
    web_rig.fake.lease_s = 1.0 if how == "lease" else 60.0
    with bad_storage(pki, lambda h: time.sleep(60)) as server:
        web_rig.fake.jobs = [make_job(inputs=[{"lfn": "d", "source": server.url()}])]
        thread = web_rig.start()
        wait_for(lambda: server.seen)
        began = time.monotonic()
        if how == "killed":
            web_rig.fake.command = "tobekilled"
        elif how == "stale":
            web_rig.fake.stale = True
        elif how == "lease":
            cut_off(web_rig.fake)
        else:
            web_rig.stop._take(signal.SIGTERM, None)
        thread.join(60)
        assert time.monotonic() - began < 50
    ends = {"killed": "cancelled", "signal": "activated", "stale": "starting", "lease": "failed"}
    assert web_rig.fake.final.job_status == ends[how]
    assert web_rig.switcher.launched == []
    assert web_rig.leftovers() == []


def test_after_the_end_of_the_lease_no_output_is_begun(web_rig: Rig, pki: Pki, monkeypatch: Any) -> None:
    """The payload has ended meanwhile; where its outputs belong the next attempt may be writing."""
    collected, collect = threading.Event(), job.collect

    def late(*arguments: Any) -> Any:
        collected.set()
        time.sleep(4.5)
        return collect(*arguments)

    monkeypatch.setattr(job, "collect", late)
    web_rig.fake.lease_s = 1.0
    with bad_storage(pki, slow_storage(0)) as server:
        outputs = [{"lfn": "d", "destination": server.url()}]
        web_rig.fake.jobs = [make_job(argv=["sh", "-c", "echo x > d"], outputs=outputs)]
        thread = web_rig.start()
        assert collected.wait(60)
        cut_off(web_rig.fake)
        thread.join(60)
        assert server.methods == []
    assert first_error(web_rig.fake)[0] == 1318
