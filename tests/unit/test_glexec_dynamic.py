"""Leases of dynamic uids: who must not get one, and what survives a crash. Files only, under this test's account."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.glexec import dynamic
from airpanda.glexec.config import parse_config
from airpanda.glexec.dynamic import Owner, UidRange
from airpanda.glexec.remains import remove_files

ALICE, BOB = Owner("/O=Grid/CN=Alice", ()), Owner("/O=Grid/CN=Bob", ())
PRODUCTION = Owner(ALICE.dn, ("/atlas/Role=production/Capability=NULL",))
FIRST = 4_000_000_000  # no process and no file has it
GOOD = """[glexec]
callers = pilot
ca_dir = /ca
log_file = /l
mapping = dynamic
authorised = /a
uid_range = 700000-700009
lease_dir = /leases
payload_dirs = /p
"""


@pytest.fixture(autouse=True)
def _keyrings_need_root(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        monkeypatch.setattr(dynamic, "clear_keyrings", lambda uid: True)


def leases(where: Path, count: int = 1, *, idle_s: float = 0, places: list[Path] | None = None) -> UidRange:
    return UidRange(where, range(FIRST, FIRST + count), places or [], idle_s=idle_s)


def release(held: dynamic.Held) -> None:
    """As the kernel does when the last process of a run ends."""
    os.close(held._descriptor)


def test_a_uid_whose_keys_cannot_be_dropped_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(leases(tmp_path).lease(ALICE)[2])
    monkeypatch.setattr(dynamic, "clear_keyrings", lambda uid: False)
    with pytest.raises(NotAuthorisedError):
        leases(tmp_path).lease(BOB)


def test_a_uid_that_another_launch_is_cleaning_up_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many launches of one new owner: one takes the last uid from its former owner, and the others get it too."""
    release(leases(tmp_path).lease(ALICE)[2])
    cleaning, go_on = threading.Event(), threading.Event()

    def clean(uid: int, places: object) -> bool:
        cleaning.set()
        return go_on.wait(30)

    monkeypatch.setattr(dynamic, "remove_files", clean)
    monkeypatch.setattr(dynamic, "clear_keyrings", lambda uid: True)  # it forks
    found: list[int] = []
    launches = [threading.Thread(target=lambda: found.append(leases(tmp_path).lease(BOB)[0])) for _ in range(3)]
    for launch in launches:
        launch.start()
        assert cleaning.wait(30)
    go_on.set()
    for launch in launches:
        launch.join(60)
    assert found == [FIRST] * 3


def test_a_uid_that_stays_locked_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "_TRANSIT_S", 0.1)
    with (tmp_path / f"{FIRST}-leaving").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(NotAuthorisedError):
            leases(tmp_path).lease(ALICE)


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["authorised", "uid_range", "lease_dir", "payload_dirs"])
def test_every_option_of_dynamic_uids_is_needed(option: str) -> None:
    text = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(option))
    with pytest.raises(ConfigurationError, match=option):
        parse_config(text, where="file")


@pytest.mark.parametrize("value", ["", "5", "0-5", "9-5", "a-b", "-5", "1-4294967295"])
def test_ranges_that_are_none(value: str) -> None:
    with pytest.raises(ConfigurationError, match="uid_range"):
        parse_config(GOOD.replace("700000-700009", value), where="file")


def test_a_shared_temporary_directory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="private_tmp"):
        parse_config(GOOD + "private_tmp = no\n", where="file")


def test_a_good_configuration() -> None:
    assert parse_config(GOOD, where="file").uid_range == (700_000, 700_009)


# --- leases ---------------------------------------------------------------------------------------------------------


def test_one_owner_keeps_one_uid_and_no_other_shares_it(tmp_path: Path) -> None:
    found = {owner: leases(tmp_path, 3).lease(owner)[0] for owner in (ALICE, BOB, PRODUCTION)}
    assert len(set(found.values())) == 3
    assert {owner: leases(tmp_path, 3).lease(owner)[0] for owner in (ALICE, BOB, PRODUCTION)} == found


def test_a_lease_in_use_is_never_taken_however_idle_it_looks(tmp_path: Path) -> None:
    _, _, held = leases(tmp_path).lease(ALICE)
    with pytest.raises(NotAuthorisedError, match="no uid"):
        leases(tmp_path).lease(BOB)
    release(held)
    assert leases(tmp_path).lease(BOB)[0] == FIRST


def test_a_lease_is_its_owners_until_it_has_been_idle(tmp_path: Path) -> None:
    release(leases(tmp_path).lease(ALICE)[2])
    with pytest.raises(NotAuthorisedError, match="no uid"):
        leases(tmp_path, idle_s=3600).lease(BOB)
    os.utime(next(tmp_path.iterdir()), (0, 0))
    assert leases(tmp_path, idle_s=3600).lease(BOB)[0] == FIRST


def test_the_one_idle_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    for owner in (ALICE, BOB):
        release(leases(tmp_path, 2).lease(owner)[2])
    os.utime(tmp_path / f"{FIRST + 1}-{BOB.digest}", (1, 1))
    assert leases(tmp_path, 2).lease(PRODUCTION)[0] == FIRST + 1


def test_a_uid_with_processes_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(leases(tmp_path).lease(ALICE)[2])
    monkeypatch.setattr(dynamic, "has_processes", lambda uid: True)
    with pytest.raises(NotAuthorisedError, match="no uid"):
        leases(tmp_path).lease(BOB)


def test_remains_that_cannot_be_removed_keep_the_uid_out_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(leases(tmp_path).lease(ALICE)[2])
    with monkeypatch.context() as broken:
        broken.setattr(dynamic, "remove_files", lambda uid, places: False)
        for owner in (BOB, ALICE):  # not even for its former owner: half of the files may be gone
            with pytest.raises(NotAuthorisedError, match="no uid"):
                leases(tmp_path).lease(owner)
    assert [path.name for path in tmp_path.iterdir()] == [f"{FIRST}-leaving"]
    assert leases(tmp_path).lease(BOB)[0] == FIRST


def test_what_a_crash_leaves(tmp_path: Path) -> None:
    (tmp_path / "new").write_text('{"dn": "/O=')
    (tmp_path / f"{FIRST}-leaving").touch()
    (tmp_path / "lost+found").mkdir()
    assert leases(tmp_path).lease(ALICE)[0] == FIRST


def test_a_uid_on_its_way_is_not_taken_by_two(tmp_path: Path) -> None:
    leaving = tmp_path / f"{FIRST}-leaving"
    leaving.touch()
    with leaving.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(NotAuthorisedError, match="no uid"):
            leases(tmp_path).lease(ALICE)


def test_a_lease_with_another_owner_inside_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{FIRST}-{ALICE.digest}").write_text(BOB.text)
    with pytest.raises(ConfigurationError, match="does not name its owner"):
        leases(tmp_path).lease(ALICE)


def test_leases_outside_of_the_range_are_left_alone(tmp_path: Path) -> None:
    """The site has moved its range: an old uid may be an account by now."""
    (tmp_path / f"5-{ALICE.digest}").write_text(ALICE.text)
    assert leases(tmp_path).lease(ALICE)[0] == FIRST


# --- remains --------------------------------------------------------------------------------------------------------


def test_remains_are_removed_and_nothing_else(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: giving files away needs root")
    outside, place = tmp_path / "outside", tmp_path / "place"
    for directory in (outside, place, place / "pilot", place / "pilot" / "in", place / "pilot" / "in" / "deep"):
        directory.mkdir()
    os.chown(place / "pilot" / "in", FIRST, FIRST)
    os.chown(place / "pilot" / "in" / "deep", FIRST, FIRST)
    (outside / "precious").touch()
    os.chown(outside / "precious", FIRST, FIRST)
    (place / "pilot" / "in" / "link").symlink_to(outside)
    os.chown(place / "pilot" / "in" / "link", FIRST, FIRST, follow_symlinks=False)
    (place / "pilot" / "others").touch()
    os.mkfifo(place / "pilot" / "in" / "deep" / "fifo")
    os.chown(place / "pilot" / "in" / "deep" / "fifo", 0, FIRST)
    (place / "pilot" / "in").chmod(0)
    assert remove_files(FIRST, [place, tmp_path / "missing"])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "outside",
        "outside/precious",
        "place",
        "place/pilot",
        "place/pilot/others",
    ]


def test_a_directory_with_somebody_elses_file_is_not_clean(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: giving files away needs root")
    (tmp_path / "in").mkdir()
    os.chown(tmp_path / "in", FIRST, FIRST)
    (tmp_path / "in" / "roots").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert not remove_files(FIRST, [tmp_path])
    assert not remove_files(FIRST, [tmp_path / "link"])
    assert (tmp_path / "in" / "roots").exists()
