"""Leases of pool accounts in a gridmapdir: hard links, shared with LCMAPS.

A lease is a hard link of an account's file, named after the DN. The name is not one-to-one, so the exact DN is
kept beside it, in a directory of our own, and a different DN with the same name is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.glexec.gridmap import lease_name, pool_members

_OWNERS = ".airpanda-owners"


class LeaseOwners:
    """Which exact DN each lease belongs to: a file for each, in a directory of root's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def claim(self, name: str, dn: str) -> None:
        """Remember the DN of a lease at first sight; refuse another one.

        Raises:
            NotAuthorisedError: it is another DN's, whose name only looks the same.
        """
        with _locked(self._directory):
            owner = self._directory / name
            if not owner.exists():
                temporary = owner.with_name(f"new-{os.getpid()}")
                temporary.write_text(dn, encoding="utf-8")
                temporary.replace(owner)
            if owner.read_text(encoding="utf-8") != dn:
                raise NotAuthorisedError("the pool account's lease belongs to another DN with the same lease name")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class GridMapDir:
    """One gridmapdir. Every method runs under one lock, so simultaneous launches of one DN get one lease."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owners = LeaseOwners(path / _OWNERS)

    def lease(self, dn: str, prefix: str, *, role: str = "") -> tuple[str, str]:
        """The pool account of this DN (in this role) and the lease's name; the same again, for ever.

        Raises:
            NotAuthorisedError: no account of the pool is free, the lease belongs to another pool, or to
                another DN that only looks the same.
            ConfigurationError: the directory cannot be used.
        """
        name = lease_name(dn) + role
        try:
            self._owners.claim(name, dn)
            with _locked(self._path):
                account = self._account_behind(name)
                if account is None:
                    account = self._take(name, prefix)
        except OSError as error:
            raise ConfigurationError(f"gridmapdir {self._path}: {error.strerror}") from error
        if account not in pool_members([account], prefix):
            raise NotAuthorisedError(f"the lease of this DN is account {account}, which is not of pool .{prefix}")
        return account, name

    def _account_behind(self, name: str) -> str | None:
        try:
            inode = os.lstat(self._path / name).st_ino
        except FileNotFoundError:
            return None
        for entry in os.scandir(self._path):
            if entry.name != name and entry.inode() == inode:
                return entry.name
        raise NotAuthorisedError(f"the lease {name} has lost its account; the site must repair its gridmapdir")

    def _take(self, name: str, prefix: str) -> str:
        for account in pool_members(os.listdir(self._path), prefix):
            source = self._path / account
            if os.lstat(source).st_nlink == 1:
                os.link(source, self._path / name, follow_symlinks=False)
                return account
        raise NotAuthorisedError(f"no account of pool .{prefix} is free; the site must add some")
