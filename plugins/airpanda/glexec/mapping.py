"""From a verified credential to an account: the seam behind which each way of mapping stands."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Protocol

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.core.identity import Account
from airpanda.core.records import dataclass
from airpanda.core.secret import Secret
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.gridmap import Target, find, is_banned, parse_banfile, parse_gridmap
from airpanda.glexec.leases import GridMapDir
from airpanda.glexec.trusted import check_trusted, read_trusted


class Hold(Protocol):
    """A lease in use, for as long as this process and its children live."""

    def touch(self) -> None: ...


@dataclass(frozen=True)
class Mapping:
    """An account for one run; ``lease`` is the lease behind it, None for a static mapping.

    ``held`` keeps a dynamic uid's lease: such an account exists for its payloads only.
    """

    account: Account
    home: str
    lease: Optional[str] = None
    held: Optional[Hold] = None


class Mapper(Protocol):
    """One way of mapping, for identities that ``check_ban`` let pass. The same credential gets the same account."""

    def begin(self) -> None:
        """Start whatever takes time, before the identity is known; ``close`` ends it."""
        return

    def close(self) -> None:
        """Nothing more will be asked. A repeat is no error."""
        return

    def map(self, dn: str, fqans: Sequence[str], pem: Secret[bytes]) -> Mapping:
        """The account of a verified identity; ``pem`` is the credential behind it, for a mapper that reads it itself.

        Raises:
            NotAuthorisedError: unmapped, or no account left (203).
            ConfigurationError: the site's files are missing, malformed or unsafe (202).
        """


class MapfileMapper(Mapper):
    """Our own mapping: grid-mapfile, gridmapdir. Files are read anew each time and must be root's."""

    def __init__(self, config: LauncherConfig) -> None:
        self._config = config

    def map(self, dn: str, fqans: Sequence[str], pem: Secret[bytes]) -> Mapping:
        found, target = self.target(dn, fqans)
        if not target.pool:
            return account_of(target.name)
        # By attribute or by name is a different role, and so a different lease.
        role = "" if found == dn else f":{target.name}"
        name, lease = self._gridmapdir().lease(dn, target.name, role=role)
        return account_of(name, lease)

    def target(self, dn: str, fqans: Sequence[str]) -> tuple[str, Target]:
        """What the mapfile says and for which name: the first FQAN that it knows, else the DN. Takes no lease.

        Raises:
            NotAuthorisedError: nothing.
        """
        path = self._config.mapfile
        if path is None:
            raise ConfigurationError("mapping = own needs mapfile")
        lines = parse_gridmap(read_trusted(path), where=str(path))
        for name in (*fqans, dn):
            target = find(lines, name)
            if target is not None:
                return name, target
        raise NotAuthorisedError(f"the grid-mapfile {path} has no line for this DN")

    def _gridmapdir(self) -> GridMapDir:
        path: Optional[Path] = self._config.gridmapdir
        if path is None:
            raise ConfigurationError("the grid-mapfile names a pool, but gridmapdir is not set")
        check_trusted(path)
        return GridMapDir(path)


def check_ban(config: LauncherConfig, dn: str, fqans: Sequence[str]) -> None:
    """Raises NotAuthorisedError where the DN or one of the FQANs is banned. To be asked before any way of mapping."""
    path = config.ban_file
    if path is not None and is_banned(parse_banfile(read_trusted(path), where=str(path)), [dn, *fqans]):
        raise NotAuthorisedError(f"this identity is banned by {path}")


def account_of(name: str, lease: Optional[str] = None) -> Mapping:
    """The account with exactly the groups that the site's account database gives it.

    Raises:
        NotAuthorisedError: there is no such account.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise NotAuthorisedError(f"the identity is mapped to account {name}, which does not exist here") from error
    others = [g for g in os.getgrouplist(name, entry.pw_gid) if g != entry.pw_gid]
    return Mapping(Account(name, entry.pw_uid, (entry.pw_gid, *others)), entry.pw_dir, lease)


def check_mapping(mapping: Mapping, *, caller_uid: int, config: LauncherConfig) -> None:
    """Rule 4: whatever mapped it, a payload never gets a system account, a system group, or the caller's own.

    Nor that of any caller, whose proxies it could read and as whom it could start others' payloads, nor LCMAPS' own,
    whose leases it could change.

    Raises:
        NotAuthorisedError: it would.
    """
    account = mapping.account
    if account.uid < config.minimum_uid:
        raise NotAuthorisedError(f"account {account.name} has uid {account.uid}, under {config.minimum_uid}")
    if account.uid == caller_uid:
        raise NotAuthorisedError(f"account {account.name} is the caller's own")
    groups = {f"%{name}" for name in map(_name_of_group, account.gids) if name}
    if groups & set(config.callers) or account.uid in _uids(config.callers):
        raise NotAuthorisedError(f"account {account.name} is one of the launcher's callers")
    if config.mapping == "lcmaps" and account.uid in _uids([config.lcmaps_user]):
        raise NotAuthorisedError(f"account {account.name} is the one that LCMAPS runs under")
    low = [gid for gid in account.gids if gid < config.minimum_gid]
    if low:
        raise NotAuthorisedError(f"account {account.name} is in group {_group_name(low[0])}, under the minimum gid")


def _uids(names: Sequence[str]) -> set[int]:
    """Of those that are accounts of this machine."""
    found = set()
    for name in names:
        with contextlib.suppress(KeyError):
            found.add(pwd.getpwnam(name).pw_uid)
    return found


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _group_name(gid: int) -> str:
    return f"{name} ({gid})" if (name := _name_of_group(gid)) else str(gid)
