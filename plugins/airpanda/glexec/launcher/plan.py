"""Everything that is decided before a process is made: the one value that the payload's side works from."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from typing import Optional

from airpanda.core.identity import Account
from airpanda.core.records import dataclass, field
from airpanda.core.secret import Secret
from airpanda.glexec import contract
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.launcher.identity import Caller, open_as
from airpanda.glexec.launcher.limits import Limit
from airpanda.glexec.launcher.refusal import client_error
from airpanda.glexec.launcher.request import Request
from airpanda.glexec.mapping import Mapping as Mapped
from airpanda.glexec.trusted import check_trusted

_PATH = "/usr/local/bin:/usr/bin:/bin"
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - each is replaced by a private one
_KEPT = (contract.TARGET_PROXY, contract.ENVIRONMENT, contract.LOG_ID)


def is_below(path: str, root: str) -> bool:
    """Whether ``path`` lies strictly below ``root``."""
    return path.startswith(root.rstrip("/") + "/")


@dataclass(frozen=True)
class Place:
    """A directory that was opened by somebody who may, and how to know it again."""

    path: str
    device: int
    inode: int
    owner: int

    @classmethod
    def of(cls, descriptor: int) -> Optional[Place]:
        """The place of an open directory, or None where its path leads elsewhere (another mount namespace)."""
        status = os.fstat(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        place = cls(path, status.st_dev, status.st_ino, status.st_uid)
        return place if place.is_at(path) else None

    def is_at(self, path: str) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)


@dataclass(frozen=True)
class TargetProxy:
    """The payload's copy: where it goes and what is in it. ``directory`` is None inside the private /tmp.

    ``made`` is one byte that all processes of a run share: it is set once the file is this run's own, and only then
    may the file be removed.
    """

    path: str
    directory: Optional[Place]
    pem: Secret[bytes]
    made: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1), repr=False)


@dataclass(frozen=True)
class Plan:
    """One payload, ready to be made."""

    account: Account
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    standard: tuple[int, int, int]
    directory: Optional[Place]
    keep_directory: bool
    """Whether it stays visible in a hidden place."""
    proxy: Optional[TargetProxy]
    hide: tuple[str, ...]
    show: tuple[str, ...]
    private_tmp: bool
    tmp_mib: int
    max_processes: int
    limits: tuple[Limit, ...]
    transient: bool
    """Its account is no machine's: it exists for this payload, which can write in ``writable`` only."""
    home: str
    writable: tuple[str, ...]


def make_plan(request: Request, config: LauncherConfig, mapping: Mapped, pem: Secret[bytes]) -> Plan:
    """The plan for a request whose identity is mapped.

    Raises:
        IdentitySwitchError: 201, the target proxy has no fit place or a standard descriptor is a directory.
        ConfigurationError: a hidden path could be changed by others than root.
    """
    account, transient = mapping.account, mapping.held is not None
    for descriptor in request.standard:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise client_error("a standard descriptor is a directory")
    proxy = _target_proxy(request.environ.get(contract.TARGET_PROXY), account, config, pem)
    directory = Place.of(request.directory)
    return Plan(
        account=account,
        argv=request.argv,
        environ=_environment(request, account, mapping.home, proxy),
        standard=request.standard,
        directory=directory,
        keep_directory=directory is not None and directory.owner in (request.caller.uid, account.uid),
        proxy=proxy,
        hide=(*request.hide, *_hidden(request.caller, config)),
        show=tuple(map(str, config.show)),
        private_tmp=config.private_tmp,
        tmp_mib=config.tmp_mib,
        max_processes=config.max_processes,
        limits=request.limits,
        transient=transient,
        home=mapping.home,
        writable=tuple(map(str, config.payload_dirs)) if transient else (),
    )


def _target_proxy(
    path: Optional[str], account: Account, config: LauncherConfig, pem: Secret[bytes]
) -> Optional[TargetProxy]:
    if path == contract.NO_TARGET_PROXY:
        return None
    if not path:
        if not config.private_tmp:
            raise client_error(f"{contract.TARGET_PROXY} is not set, and this site has no private /tmp for it")
        return TargetProxy(f"/tmp/x509up_u{account.uid}", None, pem)  # noqa: S108 - private to this run
    if not os.path.isabs(path) or os.path.basename(path) in ("", ".", ".."):
        raise client_error(f"{contract.TARGET_PROXY} must be the absolute path of a file")
    # Such as sites' probes of gLExec ask for. What everybody may write to is nobody else's in there.
    if config.private_tmp and os.path.dirname(path) in TEMPORARY and os.path.isdir(os.path.dirname(path)):
        return TargetProxy(path, None, pem)
    return TargetProxy(path, _target_directory(os.path.dirname(path), account), pem)


def _target_directory(path: str, account: Account) -> Place:
    name = contract.TARGET_PROXY
    try:
        descriptor = open_as(account, lambda: os.open(path, _DIRECTORY))
    except OSError as error:
        raise client_error(f"{name}: its directory: {error.strerror} (as {account.name})") from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != account.uid or status.st_mode & stat.S_IWOTH:
            raise client_error(f"{name}: its directory must belong to {account.name} and not be world-writable")
        place = Place.of(descriptor)
    finally:
        os.close(descriptor)
    if place is None:
        raise client_error(f"{name}: the launcher cannot see this directory")
    return place


def _environment(request: Request, account: Account, home: str, proxy: Optional[TargetProxy]) -> dict[str, str]:
    environ = {"HOME": home, "USER": account.name, "LOGNAME": account.name, "PATH": _PATH}
    environ.update({name: request.environ[name] for name in _KEPT if name in request.environ})
    if proxy is not None:
        environ["X509_USER_PROXY"] = proxy.path
    return environ


def _hidden(caller: Caller, config: LauncherConfig) -> tuple[str, ...]:
    check_hidden(config)
    hidden = [str(path) for path in config.hide]
    if config.hide_caller_home and caller.uid != 0 and _owns(caller, caller.home):
        hidden.append(os.path.realpath(caller.home))
    return tuple(hidden)


def check_hidden(config: LauncherConfig) -> None:
    """Refuse to hide by a name that somebody else could give to another directory meanwhile.

    Raises:
        ConfigurationError: a directory above one of the hidden paths is not root's alone.
    """
    for path in config.hide:
        if not (config.private_tmp and any(is_below(str(path), place) for place in TEMPORARY)):
            check_trusted(next(parent for parent in path.parents if parent.exists()))


def _owns(caller: Caller, path: str) -> bool:
    """System accounts often have a home such as /usr/sbin that is not theirs to hide."""
    try:
        return os.path.isabs(path) and os.stat(path).st_uid == caller.uid
    except OSError:
        return False
