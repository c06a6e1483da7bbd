"""The launcher's configuration: one ``[glexec]`` section, read anew for every run, refused whole if unsafe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from airpanda.core.errors import ConfigurationError
from airpanda.core.records import dataclass
from airpanda.glexec.trusted import read_trusted

SECTION = "glexec"


@dataclass(frozen=True)
class LauncherConfig:
    """What a site decides. ``EXAMPLE`` in ``install`` explains each option to its admin."""

    callers: tuple[str, ...]
    ca_dir: Path
    log_file: Path
    mapping: str = "own"
    mapfile: Optional[Path] = None
    lcmaps_db: Optional[Path] = None
    lcmaps_policy: str = "glexec_get_account"
    lcmaps_user: str = "nobody"
    voms: bool = True
    voms_dir: Path = Path("/etc/grid-security/vomsdir")
    allow_root: bool = False
    gridmapdir: Optional[Path] = None
    ban_file: Optional[Path] = None
    require_crl: bool = False
    allow_limited: bool = False
    max_proxy_hours: int = 24 * 14
    minimum_uid: int = 1000
    minimum_gid: int = 1000
    hide: tuple[Path, ...] = ()
    show: tuple[Path, ...] = ()
    hide_caller_home: bool = True
    private_tmp: bool = True
    tmp_mib: int = 1024
    max_processes: int = 4096
    max_runs: int = 256
    max_runs_per_caller: int = 0
    cgroup: bool = True
    syslog: bool = True
    gratia_log: Optional[Path] = None
    authorised: Optional[Path] = None
    uid_range: tuple[int, int] = (0, 0)
    lease_dir: Optional[Path] = None
    payload_dirs: tuple[Path, ...] = ()
    uid_idle_minutes: int = 60


def read_config(path: Path) -> LauncherConfig:
    """The configuration of this file.

    Raises:
        ConfigurationError: the file or a parent is not root's alone, or an option is unknown, missing or wrong.
    """
    return parse_config(read_trusted(path, limit=64 * 1024), where=str(path))


def parse_config(text: str, *, where: str) -> LauncherConfig:
    """Text to configuration. Nothing unknown is accepted: a misspelt restriction must not be lost."""
    options = _options(text, where)
    unknown = sorted(set(options) - set(_READERS))
    if unknown:
        raise ConfigurationError(f"{where}: [{SECTION}] has no option {unknown[0]!r}")
    config = LauncherConfig(**_values(options, where))
    for needed in _NEEDED_BY[config.mapping]:
        if not options.get(needed, "").strip():
            raise ConfigurationError(
                f"{where}: [{SECTION}] {needed} is not set, and mapping = {config.mapping} needs it"
            )
    if config.mapping == "dynamic" and not config.private_tmp:
        raise ConfigurationError(f"{where}: [{SECTION}] mapping = dynamic needs private_tmp = yes")
    return config


def _options(text: str, where: str) -> dict[str, str]:
    """Names and values as written. The language is that of ``configparser``, whose import takes a fiftieth of a launch.

    One section; ``name = value``, and indented lines that go on with the value; comments have a line of their own.
    """
    options: dict[str, str] = {}
    sections: list[str] = []
    name = ""
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content[0] in "#;":
            continue
        if line[0].isspace() and name:
            options[name] += f"\n{content}"
        elif content[0] == "[" and content[-1] == "]":
            sections.append(content)
            name = ""
        else:
            name, equals, value = (part.strip() for part in content.partition("="))
            name = name.lower()
            if line[0].isspace() or not equals or not name or not sections:
                raise ConfigurationError(f"{where}: line {number} is not NAME = VALUE below [{SECTION}]")
            if name in options:
                raise ConfigurationError(f"{where}: line {number} sets {name!r} again")
            options[name] = value
    if sections != [f"[{SECTION}]"]:
        raise ConfigurationError(f"{where} must have exactly one section, [{SECTION}]")
    return options


def _values(options: Mapping[str, str], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, read in _READERS.items():
        raw = options.get(name, "").strip()
        if not raw:
            if name in _REQUIRED:
                raise ConfigurationError(f"{where}: [{SECTION}] {name} is not set")
            if name in options and read is _words:
                values[name] = ()
            continue
        try:
            values[name] = read(raw)
        except ValueError as error:
            raise ConfigurationError(f"{where}: [{SECTION}] {name} = {raw!r}: {error}") from error
    return values


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def _path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("must be an absolute path without '..'")
    return path


def _paths(text: str) -> tuple[Path, ...]:
    """One path a line, since a path may hold spaces."""
    return tuple(_path(line.strip()) for line in text.splitlines() if line.strip())


def _mapping(text: str) -> str:
    if text not in _NEEDED_BY:
        raise ValueError(f"must be one of {', '.join(_NEEDED_BY)}")
    return text


def _flag(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return text == "yes"


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def _uid_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not dash or not 0 < int(first) <= int(last) < 2**32 - 2:
        raise ValueError("must be FIRST-LAST")
    return int(first), int(last)


_READERS: dict[str, Callable[[str], Any]] = {
    "callers": _words,
    "ca_dir": _path,
    "log_file": _path,
    "mapping": _mapping,
    "mapfile": _path,
    "lcmaps_db": _path,
    "lcmaps_policy": str,
    "lcmaps_user": str,
    "voms": _flag,
    "voms_dir": _path,
    "allow_root": _flag,
    "gridmapdir": _path,
    "ban_file": _path,
    "require_crl": _flag,
    "allow_limited": _flag,
    "max_proxy_hours": _count,
    "minimum_uid": _count,
    "minimum_gid": _count,
    "hide": _paths,
    "show": _paths,
    "hide_caller_home": _flag,
    "private_tmp": _flag,
    "tmp_mib": _count,
    "max_processes": _count,
    "max_runs": _count,
    "max_runs_per_caller": _count,
    "cgroup": _flag,
    "syslog": _flag,
    "gratia_log": _path,
    "authorised": _path,
    "uid_range": _uid_range,
    "lease_dir": _path,
    "payload_dirs": _paths,
    "uid_idle_minutes": _count,
}
_REQUIRED = frozenset({"callers", "ca_dir", "log_file"})
_NEEDED_BY = {
    "own": ("mapfile",),
    "lcmaps": ("lcmaps_db",),
    "dynamic": ("authorised", "uid_range", "lease_dir", "payload_dirs"),
}
