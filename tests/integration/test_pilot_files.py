"""A pilot and a job's files at URLs: a real carrier, no real switch (``test_pilot_files_real_chain`` has one)."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_dispatcher import FakeDispatcher, fake_dispatcher, make_job
from support.fake_switch import FakeSwitcher
from support.pilot_rig import Rig

from airpanda.core.identity import Account
from airpanda.pilot import errors
from airpanda.pilot.transfers import verdict

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


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"inputs": [{"lfn": "d", "source": "root://se.example//d"}]}, 1313, "d: root://se.example//d"),
        ({"outputs": [{"lfn": "d", "destination": "root://se.example//d/"}]}, 1313, "d: root://se.example//d/d"),
    ],
    ids=["input", "output"],
)
def test_a_scheme_that_this_pilot_does_not_know_is_refused_before_the_start(
    rig: Rig, files: dict[str, Any], code: int, words: str
) -> None:
    rig.fake.jobs = [make_job(**files)]
    assert rig.run() == errors.EXIT_OK
    assert rig.fake.statuses == ["starting", "failed"]
    assert first_error(rig.fake)[:2] == (code, "site")
    assert words in first_error(rig.fake)[2]
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
