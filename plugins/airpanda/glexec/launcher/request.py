"""What a caller asks for, checked as far as text goes."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping, Sequence

from airpanda.core.records import dataclass
from airpanda.glexec import contract
from airpanda.glexec.config import LauncherConfig
from airpanda.glexec.launcher.identity import Caller
from airpanda.glexec.launcher.limits import Limit
from airpanda.glexec.launcher.refusal import client_error, not_authorised

KNOWN = ("CLIENT_CERT", "SOURCE_PROXY", "TARGET_PROXY", "ENV", "ID", "MODE", "RECORD")
PREFIX = "GLEXEC_"


@dataclass(frozen=True)
class Request:
    """One run to make. ``environ`` holds GLEXEC_* only; the descriptors are ours to close."""

    caller: Caller
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    standard: tuple[int, int, int]
    directory: int
    launcher_kind: str
    limits: tuple[Limit, ...] = ()
    """The caller's own, which the launcher does not have or has lifted; the payload gets them."""
    hide: tuple[str, ...] = ()
    """The launcher's own places, which are nothing for a payload."""


def caller_of(uid: int, gid: int, groups: Sequence[int]) -> Caller:
    """The caller by its ids.

    Raises:
        IdentitySwitchError: 203, the uid has no account on this machine.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError as error:
        raise not_authorised(f"uid {uid} has no account on this machine") from error
    return Caller(uid, gid, tuple(groups), entry.pw_name, entry.pw_dir)


def check_caller(caller: Caller, config: LauncherConfig) -> None:
    """Only the site's white list may use the launcher; ``%name`` in it is a group.

    Raises:
        IdentitySwitchError: 203, not on it.
    """
    if caller.uid == 0:
        if config.allow_root:
            return
        raise not_authorised("root may use the launcher only where the site has set allow_root = yes")
    groups = {f"%{name}" for name in map(_group_name, {caller.gid, *caller.groups}) if name}
    if not {caller.name, *groups} & set(config.callers):
        raise not_authorised(f"account {caller.name} is not among the callers that the site has listed")


def keep_known(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the contract; GLEXEC_EPILOG_* and anything unknown ends here."""
    return {name: environ[name] for name in (PREFIX + known for known in KNOWN) if name in environ}


def check_mode(environ: Mapping[str, str]) -> None:
    """Who asks gLExec to look only, or for something that is not known here, must not get a run in its place.

    Raises:
        IdentitySwitchError: 201.
    """
    mode = environ.get(contract.MODE)
    if mode is not None and mode != contract.GET_ACCOUNT:
        raise client_error(f"{contract.MODE} can be {contract.GET_ACCOUNT} only; this launcher has no other mode")


def check_command(argv: Sequence[str]) -> None:
    """The command is an absolute path; whether it can be executed is the target's to find out.

    Raises:
        IdentitySwitchError: 201, it is not.
    """
    if not argv or not os.path.isabs(argv[0]):
        raise client_error("the command must be an absolute path")


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
