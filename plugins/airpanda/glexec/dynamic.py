"""Uids for a site without accounts: one for each owner for as long as it is used, then somebody else's.

A lease is a file ``UID-HASH`` in a directory of root's, with the exact owner in it. While a run lasts, its processes
hold a shared lock on the file, so a crash can leave neither a lease that is free too early nor one that is taken for
ever. A uid changes hands only through ``UID-leaving``: nobody's, until no process, no key and no file of it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.core.identity import Account
from airpanda.core.records import dataclass
from airpanda.core.secret import Secret
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.gridmap import is_listed, parse_banfile
from airpanda.glexec.mapping import Mapper, Mapping
from airpanda.glexec.remains import clear_keyrings, has_processes, remove_files
from airpanda.glexec.trusted import check_trusted, read_trusted

HOME = "/tmp"  # noqa: S108 - private to each run
_LEAVING = "leaving"
_TRANSIT_S, _STEP_S = 20.0, 0.05
_MAX_LOOKED_AT = 4096
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Owner:
    """Whose a uid is: one exact DN in one exact role."""

    dn: str
    fqans: tuple[str, ...]

    @property
    def text(self) -> str:
        return json.dumps({"dn": self.dn, "fqans": list(self.fqans)})

    @property
    def digest(self) -> str:
        import hashlib

        return hashlib.sha256(self.text.encode()).hexdigest()


class Held:
    """A lease in use: its lock lasts as long as any process that has inherited the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def touch(self) -> None:
        """The time of idleness begins anew."""
        os.utime(self._descriptor)


class UidRange:
    """The leases of one range. Every step that changes one is made under the lock of their directory."""

    def __init__(self, directory: Path, uids: range, places: Sequence[Path], *, idle_s: float) -> None:
        self._directory = directory
        self._uids = uids
        self._places = places
        self._idle_s = idle_s

    def lease(self, owner: Owner) -> tuple[int, str, Held]:
        """The uid of this owner, the lease's name, and its hold. The same again, as long as it is not idle for long.

        Raises:
            NotAuthorisedError: all are in use, or what is left of their former owners cannot be removed.
        """
        tried: set[int] = set()
        deadline = time.monotonic() + _TRANSIT_S
        while True:
            with self._locked():
                found = self._own(owner) or self._fresh(owner)
                if found is not None:
                    return found
                leaving = self._retire(tried)
                in_transit = self._in_transit(tried)
            if leaving is None and in_transit and time.monotonic() < deadline:
                time.sleep(_STEP_S)
                continue
            if leaving is None:
                raise NotAuthorisedError(
                    "no uid of the site's range is free; the site must widen uid_range or clean up"
                )
            uid, lock = leaving
            tried.add(uid)
            try:
                if not has_processes(uid) and clear_keyrings(uid) and remove_files(uid, self._places):
                    with self._locked():
                        (self._directory / f"{uid}-{_LEAVING}").unlink()
            finally:
                os.close(lock)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _files(self) -> dict[int, str]:
        """Uid to the name of its lease; names that are none are not ours to read."""
        found = {}
        for name in os.listdir(self._directory):
            number, dash, _ = name.partition("-")
            if dash and number.isdigit():
                found[int(number)] = name
        return found

    def _own(self, owner: Owner) -> Optional[tuple[int, str, Held]]:
        for uid, name in self._files().items():
            if name == f"{uid}-{owner.digest}" and uid in self._uids:
                descriptor = os.open(self._directory / name, _FLAGS)
                if os.pread(descriptor, 1 << 20, 0) != owner.text.encode():
                    os.close(descriptor)
                    raise ConfigurationError(f"the lease {name} does not name its owner; the site must remove it")
                return uid, name, _hold(descriptor)
        return None

    def _fresh(self, owner: Owner) -> Optional[tuple[int, str, Held]]:
        taken = self._files()
        uid = next((uid for uid in self._uids if uid not in taken), None)
        if uid is None:
            return None
        name = f"{uid}-{owner.digest}"
        temporary = self._directory / "new"  # a crash may have left one; under the lock it is nobody's
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, owner.text.encode())
        os.fsync(descriptor)
        temporary.rename(self._directory / name)
        return uid, name, _hold(descriptor)

    def _retire(self, tried: set[int]) -> Optional[tuple[int, int]]:
        """Take the uid that is idle for the longest time from its owner; the uid and its exclusive lock."""
        leases = [(uid, name) for uid, name in self._files().items() if uid in self._uids and uid not in tried]
        for uid, name in sorted(leases, key=lambda lease: self._used(lease[1])):
            if not name.endswith(f"-{_LEAVING}") and time.time() - self._used(name) < self._idle_s:
                continue
            descriptor = os.open(self._directory / name, _FLAGS)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            os.rename(self._directory / name, self._directory / f"{uid}-{_LEAVING}")
            return uid, descriptor
        return None

    def _in_transit(self, tried: set[int]) -> bool:
        """Whether another launch is just now cleaning up a uid; this one could not take it, so it is locked."""
        leaving = (uid for uid, name in self._files().items() if name.endswith(f"-{_LEAVING}"))
        return any(uid in self._uids and uid not in tried for uid in leaving)

    def _used(self, name: str) -> float:
        return os.stat(self._directory / name).st_mtime


def _hold(descriptor: int) -> Held:
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    held = Held(descriptor)
    held.touch()
    return held


class DynamicMapper(Mapper):
    """``mapping = dynamic``: whoever is authorised gets a uid of the range, and a group of the same number."""

    def __init__(self, config: LauncherConfig) -> None:
        self._config = config

    def map(self, dn: str, fqans: Sequence[str], pem: Secret[bytes]) -> Mapping:
        self.check_authorised(dn, fqans)
        uid, lease, held = self._range().lease(Owner(dn, tuple(fqans)))
        _check_nobodys(uid)
        return Mapping(Account(f"dyn{uid}", uid, (uid,)), HOME, lease, held)

    def check_authorised(self, dn: str, fqans: Sequence[str]) -> None:
        """Raises NotAuthorisedError where the site's list names neither the DN nor one of the FQANs."""
        path = self._config.authorised
        if path is None:
            raise ConfigurationError("mapping = dynamic needs authorised")
        if not is_listed(parse_banfile(read_trusted(path), where=str(path)), [dn, *fqans]):
            raise NotAuthorisedError(f"{path} has no line for this identity")

    def check_site(self) -> None:
        """Raises ConfigurationError where the leases' places are unsafe, or a uid of the range is an account's."""
        self._range()
        first, last = self._config.uid_range
        for uid in range(first, min(last, first + _MAX_LOOKED_AT) + 1):
            _check_nobodys(uid)

    def _range(self) -> UidRange:
        config, directory = self._config, self._config.lease_dir
        if directory is None:
            raise ConfigurationError("mapping = dynamic needs lease_dir")
        check_trusted(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        check_trusted(directory)
        for place in config.payload_dirs:
            check_trusted(place.parent)  # the directory itself may be a pilot's
        first, last = config.uid_range
        return UidRange(directory, range(first, last + 1), config.payload_dirs, idle_s=60.0 * config.uid_idle_minutes)


def _check_nobodys(uid: int) -> None:
    for database, look in (("account", pwd.getpwuid), ("group", grp.getgrgid)):
        with contextlib.suppress(KeyError):
            look(uid)
            raise ConfigurationError(f"uid_range holds {uid}, which is an {database} of this machine")
