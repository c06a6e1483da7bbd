"""``file:`` transfers by the carrier's real program: what must not be read or replaced, then what is moved."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from support.carrier import Carrier

from airpanda.pilot.transfers.plan import Transfer

CONTENT = b"muons\n" * 1000
KNOWN = {
    "size": len(CONTENT),
    "adler32": f"{zlib.adler32(CONTENT):08x}",
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
}


@pytest.fixture
def carrier(tmp_path: Path) -> Carrier:
    return Carrier(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    (place / "good").write_bytes(CONTENT)
    return place


def make_odd(place: Path) -> dict[str, str]:
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    (place / "dangling").symlink_to(place / "nothing")
    (place / "loop").symlink_to(place / "loop")
    (place / "to-fifo").symlink_to(place / "fifo")
    return {
        "directory": "not-a-file",
        "fifo": "not-a-file",
        "to-fifo": "not-a-file",
        "dangling": "missing",
        "nothing": "missing",
        "good/below": "missing",
        "loop": "refused",
        "x" * 300: "refused",
        "%00": "refused",
    }


def test_what_is_no_regular_file_is_not_read(carrier: Carrier, data: Path) -> None:
    for name, why in make_odd(data).items():
        said = carrier.fetch(f"file://{data}/{name}")
        assert (name, said["why"]) == (name, why), said
    assert carrier.fetch("file:///dev/zero")["why"] == "not-a-file"
    assert carrier.fetch("file:///")["why"] == "not-a-file"
    assert carrier.left() == []


def test_a_file_of_the_kernel_that_does_not_tell_its_size_is_none(carrier: Carrier) -> None:
    assert carrier.fetch("file:///proc/self/environ")["why"] == "changed"
    assert carrier.left() == []


@pytest.mark.parametrize(("name", "value"), [("size", 5), ("adler32", "00000001"), ("sha256", "0" * 64)])
def test_what_is_not_what_was_declared_does_not_arrive(carrier: Carrier, data: Path, name: str, value: Any) -> None:
    said = carrier.fetch(f"file://{data}/good", **{**KNOWN, name: value})
    assert said["why"] == "mismatch"
    assert said["detail"] == f"its {name} is {KNOWN[name]}, the declared one is {value}"
    assert carrier.left() == []


def test_a_file_over_the_limit_is_not_even_begun(carrier: Carrier, data: Path) -> None:
    with (data / "huge").open("wb") as file:
        file.truncate(10**12)  # sparse
    began = time.monotonic()
    assert carrier.fetch(f"file://{data}/huge", max_bytes=10**11)["why"] == "too-large"
    assert time.monotonic() - began < 60, "of the hours that it takes to read it"
    assert carrier.left() == []


def test_the_limit_is_one_for_all_files_of_a_round(carrier: Carrier, data: Path) -> None:
    each = [Transfer(lfn, "in", f"file://{data}/good", f".{lfn}") for lfn in ("a", "b", "c")]
    said = carrier.round(each, max_bytes=2 * len(CONTENT) + 5)
    assert [one.get("why") for one in said] == [None, None, "too-large"]
    assert carrier.left() == ["a", "b"]


def test_a_file_that_shrinks_while_it_is_read_does_not_arrive(carrier: Carrier, data: Path) -> None:
    with (data / "big").open("wb") as file:
        file.truncate(2 * 2**30)  # sparse: read in a second or more
    process = carrier.start([Transfer("a", "in", f"file://{data}/big", ".in.part")], max_bytes=10**12)
    part = carrier.sandbox / ".in.part"
    while not part.exists() or part.stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.005)
    assert not (carrier.sandbox / "a").exists()
    os.truncate(data / "big", 100)
    out, _ = process.communicate(timeout=60)
    assert '"changed"' in out
    assert carrier.left() == []


def test_a_carrier_that_is_told_to_end_leaves_nothing_half(carrier: Carrier, data: Path) -> None:
    with (data / "big").open("wb") as file:
        file.truncate(2 * 2**30)
    process = carrier.start([Transfer("a", "in", f"file://{data}/big", ".in.part")], max_bytes=10**12)
    while not (carrier.sandbox / ".in.part").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert carrier.left() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; the launcher's test has the accounts")
def test_a_file_of_another_account_is_refused(carrier: Carrier) -> None:
    assert carrier.fetch("file:///etc/shadow")["why"] == "refused"


def test_an_input_arrives_whole_by_its_own_name(carrier: Carrier, data: Path) -> None:
    (data / "with space").symlink_to(data / "good")
    (carrier.sandbox / ".in.part").symlink_to(data / "elsewhere")  # what an earlier try may have left
    assert carrier.fetch(f"file://{data}/with%20space", "a", **KNOWN) == {"lfn": "a", **KNOWN}
    assert (carrier.sandbox / "a").read_bytes() == CONTENT
    assert (carrier.sandbox / "a").stat().st_mode & 0o777 == 0o600
    assert not (data / "elsewhere").exists()
    assert carrier.left() == ["a"]


# --- outputs ---


def test_what_the_payload_left_that_is_no_file_is_not_sent(carrier: Carrier, data: Path) -> None:
    os.mkfifo(carrier.sandbox / "fifo")
    (carrier.sandbox / "directory").mkdir()
    (carrier.sandbox / "link").symlink_to(data / "good")
    for lfn in ("fifo", "directory", "link", "missing"):
        assert carrier.send(f"file://{data}/out", lfn)["why"] == "no-output", lfn
    assert not (data / "out").exists()


def test_an_output_replaces_no_more_than_a_regular_file(carrier: Carrier, data: Path) -> None:
    (carrier.sandbox / "a").write_bytes(b"new")
    os.mkfifo(data / "fifo")
    (data / "directory").mkdir()
    (data / "link").symlink_to(data / "good")
    for name in ("fifo", "directory", "link"):
        assert carrier.send(f"file://{data}/{name}")["why"] == "not-a-file", name
    for name, why in (("nowhere/out", "missing"), ("good/out", "missing"), ("fifo/out", "missing"), ("..", "refused")):
        assert carrier.send(f"file://{data}/{name}")["why"] == why, name
    assert (data / "good").read_bytes() == CONTENT
    assert sorted(os.listdir(data)) == ["directory", "fifo", "good", "link"]


def test_an_output_over_the_limit_is_not_sent(carrier: Carrier, data: Path) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    assert carrier.send(f"file://{data}/out", max_bytes=len(CONTENT) - 1)["why"] == "too-large"
    assert os.listdir(data) == ["good"]


def test_an_output_is_whole_or_not_there(carrier: Carrier, data: Path) -> None:
    (carrier.sandbox / "a").write_bytes(CONTENT)
    (data / "out").write_bytes(b"of an earlier attempt")
    (data / ".out.part").write_bytes(b"of an earlier try")
    assert carrier.send(f"file://{data}/out") == {"lfn": "a", **KNOWN}
    assert (data / "out").read_bytes() == CONTENT
    assert sorted(os.listdir(data)) == ["good", "out"]
    assert carrier.left() == ["a"], "it stays in the sandbox"


@pytest.mark.root
def test_a_full_disk_leaves_no_half_file(carrier: Carrier, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: this needs root")
    small = tmp_path / "small"
    small.mkdir()
    (carrier.sandbox / "a").write_bytes(b"x" * 2**20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    try:
        assert carrier.send(f"file://{small}/out")["why"] == "no-space"
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)
