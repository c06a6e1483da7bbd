"""How one proxy maps on this node, step by step, in words for a site admin."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from airpanda.core.clock import utcnow
from airpanda.core.errors import AirpandaError, ConfigurationError
from airpanda.core.records import dataclass
from airpanda.core.secret import Secret
from airpanda.glexec.config import LauncherConfig, read_config
from airpanda.glexec.contract import INTERNAL_ERROR
from airpanda.glexec.dynamic import DynamicMapper
from airpanda.glexec.launcher.credential import Identity, identify, load_trust
from airpanda.glexec.launcher.identity import Caller
from airpanda.glexec.launcher.plan import check_hidden
from airpanda.glexec.launcher.proxyfile import read_proxy
from airpanda.glexec.launcher.refusal import refusal
from airpanda.glexec.launcher.request import caller_of, check_caller
from airpanda.glexec.lcmaps import LcmapsMapper
from airpanda.glexec.mapping import MapfileMapper, Mapping, account_of, check_ban, check_mapping
from airpanda.glexec.trusted import check_trusted


@dataclass(frozen=True)
class Step:
    """One thing that was looked at. A step that is not good is the last one; ``code`` is what glexec would return."""

    good: bool
    what: str
    code: int = 0


def check(config_path: Path, *, caller: str, proxy: Path) -> Iterator[Step]:
    """The steps of a launch with this proxy by this caller, without starting anything. Only LCMAPS may take a lease.

    To be run by root, which reads the proxy as the caller, as the launcher does.
    """
    if os.geteuid() != 0:
        yield Step(False, "only root can look at a node as its launcher does; run this as root")
        return
    try:
        config = read_config(config_path)
        yield Step(True, f"the configuration {config_path} is root's alone and readable")
        _check_logs(config)
        yield Step(True, f"the record {config.log_file} is root's alone and can be written")
        check_hidden(config)
        load_trust(config.ca_dir)
        yield Step(True, f"the trust anchors in {config.ca_dir} are root's alone and readable")
        who = _caller(caller)
        check_caller(who, config)
        yield Step(True, f"{who.name} (uid {who.uid}) may use the launcher")
        content = read_proxy(str(proxy), "the proxy", who)
        yield Step(True, f"{proxy} is a private file of {who.name}")
        yield from _mapping_steps(content, who, config)
    except AirpandaError as error:
        refused = refusal(error)
        yield Step(False, str(refused), refused.exit_code or 0)
    except OSError as error:
        yield Step(False, f"{error.filename or 'the launcher'}: {error.strerror}", INTERNAL_ERROR)


def _check_logs(config: LauncherConfig) -> None:
    """What the launcher opens before every run; nothing is made here."""
    for path in filter(None, (config.log_file, config.gratia_log)):
        check_trusted(path.parent)
        if os.path.lexists(path):
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC))
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def _mapping_steps(content: Secret[bytes], who: Caller, config: LauncherConfig) -> Iterator[Step]:
    identity = identify(content, config, utcnow())
    yield Step(True, f"its chain is valid until {identity.not_after.isoformat()} and stands for {identity.dn}")
    if identity.fqans:
        yield Step(True, f"its VOMS attributes are verified: {', '.join(identity.fqans)}")
    check_ban(config, identity.dn, identity.fqans)
    yield Step(True, f"{config.ban_file} does not ban it" if config.ban_file else "there is no ban file")
    if config.mapping == "lcmaps":
        lcmaps = LcmapsMapper(config)
        try:
            mapping = lcmaps.map(identity.dn, identity.fqans, identity.pem)
        finally:
            lcmaps.close()
        check_mapping(mapping, caller_uid=who.uid, config=config)
        yield Step(True, f"LCMAPS ({config.lcmaps_db}) maps it to {_words(mapping)}")
        return
    if config.mapping == "dynamic":
        mapper = DynamicMapper(config)
        mapper.check_authorised(identity.dn, identity.fqans)
        mapper.check_site()
        first, last = config.uid_range
        yield Step(True, f"{config.authorised} lets it have a uid of {first} to {last}, leased at the first launch")
        return
    yield _target_step(MapfileMapper(config), identity, who, config)


def _target_step(mapper: MapfileMapper, identity: Identity, who: Caller, config: LauncherConfig) -> Step:
    _, target = mapper.target(identity.dn, identity.fqans)
    if target.pool:
        if config.gridmapdir is None:
            raise ConfigurationError("the grid-mapfile names a pool, but gridmapdir is not set")
        check_trusted(config.gridmapdir)
        return Step(True, f"{config.mapfile} gives it an account of pool .{target.name}, leased at the first launch")
    mapping = account_of(target.name)
    check_mapping(mapping, caller_uid=who.uid, config=config)
    return Step(True, f"{config.mapfile} maps it to {_words(mapping)}")


def _words(mapping: Mapping) -> str:
    account = mapping.account
    return f"{account.name} (uid {account.uid}, groups {', '.join(map(str, account.gids))})"


def _caller(name: str) -> Caller:
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigurationError(f"there is no account {name} on this machine") from error
    return caller_of(entry.pw_uid, entry.pw_gid, os.getgrouplist(name, entry.pw_gid))
