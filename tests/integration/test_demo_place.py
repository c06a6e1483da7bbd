"""The demonstration's directory: never somebody else's, never used twice, never half removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.demo import reachable_directory
from support.need import need_root

from airpanda_demo.errors import DemoError
from airpanda_demo.place import Place

pytestmark = pytest.mark.integration


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(name="above")
def open_directory() -> Iterator[Path]:
    with reachable_directory() as path:
        yield path


def test_a_directory_with_other_things_is_refused(above: Path) -> None:
    (above / "thesis.tex").write_text("my only copy")
    with pytest.raises(DemoError, match="holds something else than a demonstration"):
        Place(above).claim()
    assert [path.name for path in above.iterdir()] == ["thesis.tex"]


def test_a_file_and_a_link_are_refused(above: Path) -> None:
    (above / "file").write_text("")
    (above / "link").symlink_to(above)
    for name in ("file", "link"):
        with pytest.raises(DemoError, match="is no directory"):
            Place(above / name).claim()


def test_no_parent(above: Path) -> None:
    with pytest.raises(DemoError, match="is no directory; set AIRPANDA_DEMO_DIR"):
        Place(above / "a" / "b").claim()


def test_a_directory_that_others_can_write_is_refused(above: Path) -> None:
    (above / "d").mkdir()
    (above / "d").chmod(0o777)
    with pytest.raises(DemoError, match="can be written by others"):
        Place(above / "d").claim()


@pytest.mark.root
def test_another_accounts_directory_is_refused(above: Path) -> None:
    need_root()
    os.chown(above, 61_999, 61_999)
    with pytest.raises(DemoError, match=r"belongs to another account \(uid 61999\)"):
        Place(above).claim()


@pytest.mark.root
def test_a_place_that_the_nodes_accounts_cannot_reach_is_refused(above: Path) -> None:
    need_root()
    (above / "closed").mkdir(mode=0o700)
    with pytest.raises(DemoError, match="other accounts cannot pass"):
        Place(above / "closed" / "d").claim()


def test_one_at_a_time(above: Path) -> None:
    Place(above / "d").claim()
    with pytest.raises(DemoError, match=rf"already runs in .* \(process {os.getpid()}\)"):
        Place(above / "d").claim()


@pytest.mark.parametrize(("installed", "free"), [(False, 2_000_000_000), (True, 400_000_000)])
def test_too_little_space(above: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, free: int) -> None:
    place = Place(above / "d")
    place.claim()
    if installed:
        place.venv.mkdir()
        place.software.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    with pytest.raises(DemoError, match=rf"has {free / 1e6:.0f} MB of free disk space and \d+ MB are needed"):
        place.check_space()


def test_emptying_keeps_the_software_and_removing_keeps_nothing(above: Path) -> None:
    place = Place(above / "d")
    place.claim()
    for path in (place.venv, place.software, place.logs, place.pki):
        path.mkdir()
    place.ready.write_text("{}")
    place.empty()
    assert {path.name for path in place.root.iterdir()} == {".airpanda-demo", "lock", "venv", "software"}
    place.remove()
    assert not place.root.exists()
