"""The node agent starts as root: whatever the pilots' account puts in its way, root makes and changes nothing there."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from support.need import need_root

from airpanda.computing import node_agent

pytestmark = pytest.mark.root
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture(autouse=True)
def _root() -> None:
    need_root()


def make(directory: Path) -> None:
    node_agent.make_as_root(str(directory), NOBODY.pw_uid, NOBODY.pw_gid)


def test_in_roots_own_places_the_directory_is_made_for_the_account(open_path: Path) -> None:
    make(open_path / "a" / "pilots")
    made, above = (open_path / "a" / "pilots").stat(), (open_path / "a").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (NOBODY.pw_uid, NOBODY.pw_gid, 0o711)
    assert (above.st_uid, above.st_mode & 0o022) == (0, 0)
    make(open_path / "a" / "pilots")


def test_in_the_accounts_places_root_makes_nothing(open_path: Path) -> None:
    """Whoever owns the parent could put a link in place of the fresh directory before root hands it over."""
    home = open_path / "home"
    home.mkdir()
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    make(home / "pilots")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_where_others_may_write_root_makes_nothing(open_path: Path, mode: int) -> None:
    shared = open_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    make(shared / "pilots")
    assert list(shared.iterdir()) == []


def test_links_are_not_followed(open_path: Path) -> None:
    victim = open_path / "victim"
    victim.mkdir(mode=0o700)
    (open_path / "link").symlink_to(victim)
    make(open_path / "link")
    make(open_path / "link" / "pilots")
    assert victim.stat().st_uid == 0
    assert list(victim.iterdir()) == []


def test_what_is_there_keeps_its_owner(open_path: Path) -> None:
    (open_path / "roots").mkdir()
    make(open_path / "roots")
    assert (open_path / "roots").stat().st_uid == 0


def test_the_account_makes_what_root_does_not(open_path: Path) -> None:
    """The whole way: as root, below the account's own home, by becoming the account."""
    home = open_path / "home"
    home.mkdir()
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    pid = os.fork()
    if pid == 0:
        try:
            node_agent.become("nobody", str(home / "pilots"))
            os._exit(os.getuid() == NOBODY.pw_uid)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert (home / "pilots").stat().st_uid == NOBODY.pw_uid
