"""What a pilot is told at its start: ``pilot.json``, written 0600 by the computing element."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airpanda.core.errors import ConfigurationError, CredentialError
from airpanda.core.identity import IdentityPolicy
from airpanda.core.secret import Secret

MAX_CONFIG_BYTES = 1024 * 1024
_FEATURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,249}")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Slot:
    """What the queue grants to one pilot."""

    cores: int
    memory_mib: int
    disk_mib: int
    walltime_s: int


@dataclass(frozen=True)
class PilotConfig:
    """Everything that a site or the dispatcher decides for one pilot.

    ``hide`` and ``show``: directories that a payload contained without a switch must not see, and what it needs of
    them. ``workdir`` is the pilot's own 0700 directory, ``scratch`` the directory in which sandboxes are made (payload
    accounts must be able to pass through it). ``glexec`` empty: look where pilots look. ``looping_s``: a payload that
    has shown no sign of life for so long makes no progress (PanDA: two hours). ``scan_every_s``: how often a sandbox
    is measured. ``proxy_margin_s``: a payload never runs on a proxy that is closer to its end than this.
    ``benchmark_s``: how long the probe may measure the processor, 0 not at all. ``checks``: a directory of the site's
    own checks. ``bench_sleep_s``: how long a pilot on a bad node holds its slot; negative: ``idle_limit_s``.
    ``max_payloads``: the most that run side by side; 0: one a core. ``features``: what the site promises of the node.
    ``sealed_token``: the token for who holds the key of ``proxy``, from a CE whose job descriptions others can read.
    """

    pilot_id: int
    tag: str
    token: Secret[str]
    queue: str
    dispatcher_url: str
    ca_dir: str
    proxy: str
    identity_policy: IdentityPolicy
    slot: Slot
    workdir: Path
    scratch: Path
    glexec: str = ""
    myproxy: str = ""
    idle_limit_s: float = 60.0
    kill_grace_s: float = 10.0
    max_log_bytes: int = 64 * 1024 * 1024
    looping_s: float = 7200.0
    scan_every_s: float = 60.0
    proxy_margin_s: float = 600.0
    benchmark_s: float = 0.0
    checks: str = "/etc/airpanda/node-checks"
    bench_sleep_s: float = -1.0
    max_payloads: int = 0
    features: tuple[str, ...] = ()
    sealed_token: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    hide: tuple[Path, ...] = ()
    show: tuple[Path, ...] = ()

    @classmethod
    def from_json(cls, text: str, workdir: Path) -> PilotConfig:
        """Read the text of ``pilot.json``.

        Raises:
            ConfigurationError: not the expected object; names the key, never quotes the token.
        """
        try:
            values = json.loads(text)
        except ValueError:
            raise ConfigurationError("pilot.json is not JSON; the computing element must write it again") from None
        if not isinstance(values, dict):
            raise ConfigurationError("pilot.json is not an object")
        _check_keys(values, _KEYS, required=_REQUIRED, where="pilot.json")
        slot = values["slot"]
        _check_keys(slot, _SLOT, required=frozenset(_SLOT), where="pilot.json slot")
        if min(slot.values()) <= 0:
            raise ConfigurationError("pilot.json slot: every limit must be more than 0")
        environment = values.get("environment", {})
        if not all(isinstance(v, str) for v in environment.values()):
            raise ConfigurationError("pilot.json environment: values must be text")
        _check_url(values["dispatcher_url"])
        try:
            policy = IdentityPolicy(values["identity_policy"])
        except ValueError:
            raise ConfigurationError("pilot.json identity_policy must be REQUIRED, OPTIONAL or NEVER") from None
        lists: dict[str, tuple[Any, ...]] = {key: _paths(key, values.get(key, [])) for key in ("hide", "show")}
        lists["features"] = _features(values.get("features", []))
        own = {"token": Secret(values["token"]), "slot": Slot(**slot), "identity_policy": policy, "workdir": workdir}
        return cls(
            **{
                **values,
                **own,
                **lists,
                "scratch": Path(values.get("scratch") or workdir.with_name(f".{workdir.name}.wn")),
            }
        )

    def opened(self) -> PilotConfig:
        """The same with its token, which only the key in the file ``proxy`` opens.

        Raises:
            ConfigurationError: that file is unfit, or its key is another one.
        """
        if not self.sealed_token:
            return self
        # Here, so that a wrong configuration can be told where ``cryptography`` is broken, too.
        from airpanda.x509.credential import ProxyCredential
        from airpanda.x509.sealing import unseal

        try:
            key = ProxyCredential.load(Path(self.proxy)).private_key
            token = unseal(key, self.sealed_token, purpose=sealing_purpose(self.tag, self.pilot_id))
        except CredentialError as error:
            raise ConfigurationError(f"the pilot's token needs the key in {self.proxy}: {error}") from error
        return replace(self, token=token, sealed_token="")

    def without_token(self) -> dict[str, Any]:
        """The same as plain values, with no secret in it: ``from_json`` reads it back."""
        values = {key: getattr(self, key) for key in _KEYS}
        plain: dict[str, Any] = {
            "token": "",
            "sealed_token": "",
            "identity_policy": self.identity_policy.value,
            "slot": vars(self.slot),
        }
        plain.update({key: [str(item) for item in values[key]] for key in ("hide", "show", "features")})
        return {**values, **plain, "scratch": str(self.scratch), "environment": dict(self.environment)}


_SLOT: dict[str, Any] = {"cores": int, "memory_mib": int, "disk_mib": int, "walltime_s": int}
_KEYS: dict[str, Any] = {
    "pilot_id": int,
    "tag": str,
    "token": str,
    "queue": str,
    "dispatcher_url": str,
    "ca_dir": str,
    "proxy": str,
    "identity_policy": str,
    "slot": dict,
    "scratch": str,
    "glexec": str,
    "myproxy": str,
    "idle_limit_s": (int, float),
    "kill_grace_s": (int, float),
    "max_log_bytes": int,
    "looping_s": (int, float),
    "scan_every_s": (int, float),
    "proxy_margin_s": (int, float),
    "benchmark_s": (int, float),
    "checks": str,
    "bench_sleep_s": (int, float),
    "max_payloads": int,
    "features": list,
    "sealed_token": str,
    "environment": dict,
    "hide": list,
    "show": list,
}
_REQUIRED = frozenset(
    {"pilot_id", "tag", "token", "queue", "dispatcher_url", "ca_dir", "proxy", "identity_policy", "slot"}
)


def _check_keys(values: Mapping[str, Any], known: Mapping[str, Any], *, required: frozenset[str], where: str) -> None:
    for key, value in values.items():
        if key not in known:
            raise ConfigurationError(
                f"{where} has an unknown key {key!r}; computing element and pilot differ in version"
            )
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise ConfigurationError(f"{where}: {key} has the wrong type")
    missing = sorted(required - set(values))
    if missing:
        raise ConfigurationError(f"{where}: {missing[0]} is missing")


def _paths(key: str, values: list[Any]) -> tuple[Path, ...]:
    if not all(isinstance(value, str) and value.startswith("/") and len(value) > 1 for value in values):
        raise ConfigurationError(f"pilot.json {key} must be absolute paths, and not the root")
    return tuple(map(Path, values))


def _features(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) and _FEATURE.fullmatch(value) for value in values):
        raise ConfigurationError("pilot.json features must be letters, digits and ._:+- only")
    return tuple(values)


def _check_url(text: str) -> None:
    url = urlsplit(text)
    if url.scheme not in ("https", "http") or not url.hostname:
        raise ConfigurationError("pilot.json dispatcher_url must be https://host[:port][/path]")
    if url.scheme == "http" and url.hostname not in LOOPBACK:
        raise ConfigurationError(
            "pilot.json dispatcher_url must be https: the token does not cross a network in the clear"
        )


def take_config(path: Path) -> PilotConfig:
    """Read ``pilot.json`` and remove it: one file, one start; a second pilot in the directory finds nothing.

    Raises:
        ConfigurationError: missing, not this account's alone, or wrong.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be opened: {error.strerror}; a pilot starts once") from error
    try:
        data = _read_private(descriptor, path)
    finally:
        os.close(descriptor)
    try:
        os.unlink(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be taken: {error.strerror}; another pilot may have started") from error
    return PilotConfig.from_json(data.decode("utf-8", "replace"), path.absolute().parent).opened()


def sealing_purpose(tag: str, pilot_id: int) -> str:
    """What a pilot's token is sealed for: no other pilot can be given it."""
    return f"airpanda pilot {tag} {pilot_id}"


def _read_private(descriptor: int, path: Path) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigurationError(f"{path} must be a regular file of the pilot's account with mode 0600")
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigurationError(f"{path} is longer than {MAX_CONFIG_BYTES} bytes")
    return data
