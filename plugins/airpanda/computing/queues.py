"""Queue files: one PanDA queue a file, ``include/queues/<NAME>.toml``, read strictly.

A typo never becomes a silent default: unknown keys are refused with the nearest known one, and every error names
file, line and key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_type_hints
from urllib.parse import urlsplit

from airpanda.computing.ces import BRINGS_PROXY, CE, CE_KINDS, NAME, absolute, positive
from airpanda.core.errors import ConfigurationError
from airpanda.core.identity import IdentityPolicy

CREDENTIAL_SCOPES = ("job", "task", "user")
"""What a staged credential may serve, the narrowest first; ``airpanda.messages.CredentialScope``."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_T = TypeVar("_T")


@dataclass(frozen=True)
class Slot:
    """What one pilot may use."""

    cores: int = 1
    memory_mib: int = 2000
    disk_mib: int = 5000
    walltime_s: int = 7200

    def __post_init__(self) -> None:
        for item in fields(self):
            positive(item.name, getattr(self, item.name))


@dataclass(frozen=True)
class PilotStart:
    """How the pilot starts on the node. Empty ``python``: the wrapper looks; empty ``glexec``: the pilot looks.

    ``proxy`` is the pilots' credential on the node. An ARC CE brings one along, which its pilots use instead; a GRAM CE
    brings one along where ``proxy`` is empty.

    ``hide``: directories that a payload without a switch of its account must not see; ``show``: what it needs of them.
    ``myproxy`` (``host:port``) is only probed for reachability; the job names the server that is used.
    ``token_only``: pilots get jobs, with the passphrases of their credentials, on their tokens alone; without it they
    must prove their DN by mutual TLS. ``max_payloads``: how many may run side by side where the slot has room; 0: one a
    core. ``features``: what the site promises of its nodes, for jobs that ask for it. ``checks``: a directory of the
    site's own checks on the node. The others are limits, in seconds; see ``airpanda.pilot.config``.
    """

    code: str
    dispatcher_url: str
    ca_dir: str
    proxy: str = ""
    python: str = ""
    glexec: str = ""
    myproxy: str = ""
    idle_limit_s: int = 60
    hide: tuple[str, ...] = ()
    show: tuple[str, ...] = ()
    token_only: bool = False
    max_payloads: int = 0
    features: tuple[str, ...] = ()
    checks: str = "/etc/airpanda/node-checks"
    benchmark_s: int = 1
    bench_sleep_s: int = -1
    looping_s: int = 7200
    scan_every_s: int = 60
    proxy_margin_s: int = 600
    kill_grace_s: int = 10

    def __post_init__(self) -> None:
        absolute("code", self.code)
        absolute("ca_dir", self.ca_dir)
        absolute("proxy", self.proxy, optional=True)
        absolute("python", self.python, optional=True)
        absolute("glexec", self.glexec, optional=True)
        absolute("checks", self.checks, optional=True)
        for key in ("idle_limit_s", "looping_s", "scan_every_s", "proxy_margin_s", "kill_grace_s"):
            positive(key, getattr(self, key))
        for key, least in (("max_payloads", 0), ("benchmark_s", 0), ("bench_sleep_s", -1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} = {getattr(self, key)} must be {least} or more")
        for feature in self.features:
            if NAME.fullmatch(feature) is None:
                raise ValueError(f"features = {feature!r} must be letters, digits and ._:+- only")
        for key in ("hide", "show"):
            for path in getattr(self, key):
                absolute(key, path)
        if self.myproxy and re.fullmatch(r"[A-Za-z0-9.\[\]:-]+:[0-9]{1,5}", self.myproxy) is None:
            raise ValueError(f"myproxy = {self.myproxy!r} must be host:port")
        url = urlsplit(self.dispatcher_url)
        if url.scheme not in ("https", "http") or not url.hostname or url.query or url.fragment or "@" in url.netloc:
            raise ValueError(f"dispatcher_url = {self.dispatcher_url!r} must be https://host[:port][/path]")
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise ValueError("dispatcher_url must be https: pilot tokens do not cross a network in the clear")


@dataclass(frozen=True)
class FactoryRules:
    """How the pilot factory treats the queue; without ``enabled`` it sends no pilots.

    ``max_pilots``: of all kinds together. Pilots that wait at the site: as many as run times ``running_ratio``, but
    ``min_queued`` at least and ``max_queued`` at most. ``min_idle``: pilots without work to keep ready.
    ``first_batch``: how many an element gets that has not shown yet that they start; twice as many after each good
    submission, up to ``max_per_cycle``. ``queue_timeout_s``: waiting pilots older than that are cancelled;
    ``silent_timeout_s``: those that run, says the element, and say nothing themselves. ``rpc_per_minute``: calls to
    one element.

    ``credential``: the Airflow Connection of the pilots' own credential (as those of owners). The factory keeps a proxy
    of ``credential_lifetime_s`` at the element, and sends no pilot that it would not outlive by
    ``credential_margin_s``. Empty: the site provides it.
    """

    enabled: bool = False
    max_pilots: int = 1000
    max_queued: int = 100
    min_queued: int = 10
    min_idle: int = 0
    running_ratio: float = 1.0
    first_batch: int = 1
    max_per_cycle: int = 100
    queue_timeout_s: int = 172_800
    silent_timeout_s: int = 900
    rpc_per_minute: int = 30
    credential: str = ""
    credential_lifetime_s: int = 86_400
    credential_margin_s: int = 3600

    def __post_init__(self) -> None:
        counted = ("max_pilots", "max_queued", "first_batch", "max_per_cycle", "queue_timeout_s", "silent_timeout_s")
        for key in (*counted, "rpc_per_minute", "credential_lifetime_s"):
            positive(key, getattr(self, key))
        for key in ("min_queued", "min_idle", "running_ratio", "credential_margin_s"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} = {getattr(self, key)} must be 0 or more")
        if self.min_queued > self.max_queued:
            raise ValueError(f"min_queued = {self.min_queued} must not be more than max_queued = {self.max_queued}")


@dataclass(frozen=True)
class PandaQueue:
    """One PanDA queue (PanDA's ``computingSite``). ``environment`` is the site's set-up for payloads.

    ``credential_scope``: the broadest that a credential of its jobs may have: one ``job``, one panda ``task``, or all
    that its ``user`` does. ``more_ces`` are further computing elements that its pilots may go to, by the name of their
    section ``[ces.NAME]``.
    """

    name: str
    ce: CE
    pilot: PilotStart
    slot: Slot = field(default_factory=Slot)
    state: str = "online"
    identity_policy: IdentityPolicy = IdentityPolicy.REQUIRED
    credential_scope: str = "user"
    environment: Mapping[str, str] = field(default_factory=dict)
    factory: FactoryRules = field(default_factory=FactoryRules)
    more_ces: Mapping[str, CE] = field(default_factory=dict)

    @property
    def ces(self) -> Mapping[str, CE]:
        """All computing elements by name; that of ``[ce]`` is first, and named by its kind and the queue."""
        return {f"{self.ce.kind}:{self.name}": self.ce, **self.more_ces}

    def at(self, ce: str) -> PandaQueue:
        """The same queue with one of its elements; "" is that of ``[ce]``.

        Raises:
            ConfigurationError: it has none of this name (any more).
        """
        if ce in ("", f"{self.ce.kind}:{self.name}"):
            return replace(self, more_ces={})
        if ce not in self.more_ces:
            raise ConfigurationError(f"the queue {self.name} has no computing element {ce!r}: see [ces.*] in its file")
        return replace(self, ce=self.more_ces[ce], more_ces={})

    @property
    def fingerprint(self) -> str:
        """Changes when the queue's file does in any way that matters."""
        return hashlib.sha256(json.dumps(self.wire, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_online(self) -> bool:
        return self.state == "online"

    @property
    def token_only(self) -> bool:
        return self.pilot.token_only

    @property
    def features(self) -> tuple[str, ...]:
        return self.pilot.features

    @cached_property
    def wire(self) -> Mapping[str, Any]:
        """What ``to_wire`` gives, made once: to be read only."""
        return self.to_wire()

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values, for ``IntendedBatch.queue``."""
        wire = asdict(self)
        wire["ce"] = _listed(wire["ce"])
        wire["pilot"] |= {key: list(getattr(self.pilot, key)) for key in ("hide", "show", "features")}
        wire["identity_policy"] = self.identity_policy.value
        return {
            "queue": {key: wire[key] for key in ("name", "state", "identity_policy", "credential_scope")},
            **{key: wire[key] for key in ("slot", "ce", "pilot", "environment", "factory")},
            **({"ces": {name: _listed(ce) for name, ce in wire["more_ces"].items()}} if self.more_ces else {}),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> PandaQueue:
        """The queue of ``to_wire``, validated again.

        Raises:
            ConfigurationError: it is none.
        """
        return _build(wire, lambda message, *_: ConfigurationError(f"queue on the wire: {message}"))


def _listed(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in table.items()}


def load_queues(directory: Path) -> dict[str, PandaQueue]:
    """All queues of ``directory`` by name. A missing directory is an error; an empty one gives no queues.

    Raises:
        ConfigurationError: any file is wrong, or two files name one queue.
    """
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is no directory; create it or set [airpanda] include_dir")
    queues: dict[str, PandaQueue] = {}
    for path in sorted(directory.glob("*.toml")):
        queue = load_queue(path)
        other = next((name for name in queues if name.casefold() == queue.name.casefold()), None)
        if other is not None:
            raise ConfigurationError(f"{path}: the queue {queue.name!r} is already defined as {other!r}")
        queues[queue.name] = queue
    return queues


def load_queue(path: Path) -> PandaQueue:
    """One queue file, whose name must be the queue's.

    Raises:
        ConfigurationError: unreadable or wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    queue = parse_queue(text, str(path))
    if queue.name != path.stem:
        line = line_of(text, "queue", "name")
        raise ConfigurationError(f"{path}:{line}: [queue] name = {queue.name!r} must be the file's name, {path.stem!r}")
    return queue


def parse_queue(text: str, source: str) -> PandaQueue:
    """Read the text of one queue file; ``source`` names it in errors.

    Raises:
        ConfigurationError: not TOML, or not a queue; names file, line and key.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        where = f"{source}:{found[1]}" if found else source
        raise ConfigurationError(f"{where}: {error}") from error

    def wrong(message: str, section: str = "", key: str = "") -> ConfigurationError:
        line = line_of(text, section, key)
        return ConfigurationError(f"{source}:{line}: {message}" if line else f"{source}: {message}")

    return _build(document, wrong)


def line_of(text: str, section: str, key: str) -> int:
    """The line of a key, else of its section, else 0. A help for people: what decides is tomllib's reading."""
    section_line = 0
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[([^\[\]]+)\]", line)
        if header:
            inside = header[1].strip() == section
            section_line = number if inside else section_line
        elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return section_line


_SECTIONS = ("queue", "slot", "ce", "pilot", "environment", "factory", "ces")


def _build(document: Mapping[str, Any], wrong: Any) -> PandaQueue:
    """One queue of a decoded document; ``wrong(message, section, key)`` makes the error."""
    for section, table in document.items():
        if section not in _SECTIONS:
            raise wrong(f"there is no section [{section}]{_nearest(section, _SECTIONS)}", section)
        if not isinstance(table, dict):
            raise wrong(f"[{section}] must be a table", section)
    for section in ("queue", "ce", "pilot"):
        if section not in document:
            raise wrong(f"the section [{section}] is missing")
    head = dict(document["queue"])
    name, state, policy = _head(head, wrong)
    ce = _ce("ce", document["ce"], wrong)
    more_ces = _more_ces(document.get("ces", {}), f"{ce.kind}:{name}", wrong)
    pilot = _section(PilotStart, "pilot", document["pilot"], wrong)
    if not pilot.proxy and not all(isinstance(each, BRINGS_PROXY) for each in (ce, *more_ces.values())):
        raise wrong("[pilot] proxy is missing", "pilot", "proxy")
    return PandaQueue(
        name=name,
        state=state,
        identity_policy=policy,
        credential_scope=_credential_scope(head, wrong),
        ce=ce,
        pilot=pilot,
        slot=_section(Slot, "slot", document.get("slot", {}), wrong),
        environment=_environment(document.get("environment", {}), wrong),
        factory=_section(FactoryRules, "factory", document.get("factory", {}), wrong),
        more_ces=more_ces,
    )


def _ce(section: str, table: Mapping[str, Any], wrong: Any) -> CE:
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in CE_KINDS:
        known = ", ".join(CE_KINDS)
        raise wrong(
            f"[{section}] kind = {kind!r} is no computing element of this version; known: {known}", section, "kind"
        )
    ce: CE = _section(CE_KINDS[kind], section, table, wrong)
    return ce


def _more_ces(tables: Mapping[str, Any], first: str, wrong: Any) -> dict[str, CE]:
    found: dict[str, CE] = {}
    for name, table in tables.items():
        section = f"ces.{name}"
        if NAME.fullmatch(name) is None or name.casefold() in {each.casefold() for each in (first, *found)}:
            raise wrong(f"[{section}] must be named by letters, digits and ._:+- only, and like no other", section)
        if not isinstance(table, dict):
            raise wrong(f"[{section}] must be a table", section)
        found[name] = _ce(section, table, wrong)
    return found


def _head(head: dict[str, Any], wrong: Any) -> tuple[str, str, IdentityPolicy]:
    known = ("name", "state", "identity_policy", "credential_scope")
    for key in head:
        if key not in known:
            raise wrong(f"[queue] has no key {key!r}{_nearest(key, known)}", "queue", key)
    name = head.get("name")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise wrong(f"[queue] name = {name!r} must be letters, digits and ._:+- only", "queue", "name")
    state = head.get("state", "online")
    if state not in ("online", "offline"):
        raise wrong(f"[queue] state = {state!r} must be online or offline", "queue", "state")
    words = [policy.value for policy in IdentityPolicy]
    policy = head.get("identity_policy", IdentityPolicy.REQUIRED.value)
    if policy not in words:
        raise wrong(
            f"[queue] identity_policy = {policy!r} must be one of {', '.join(words)}", "queue", "identity_policy"
        )
    return name, state, IdentityPolicy(policy)


def _credential_scope(head: Mapping[str, Any], wrong: Any) -> str:
    scope = head.get("credential_scope", CREDENTIAL_SCOPES[-1])
    if not isinstance(scope, str) or scope not in CREDENTIAL_SCOPES:
        words = ", ".join(CREDENTIAL_SCOPES)
        raise wrong(f"[queue] credential_scope = {scope!r} must be one of {words}", "queue", "credential_scope")
    return scope


def _section(kind: type[_T], section: str, table: Mapping[str, Any], wrong: Any) -> _T:
    """A dataclass from one table: known keys only, types exact (true is no number), required keys present."""
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise wrong(f"[{section}] has no key {key!r}{_nearest(key, known)}", section, key)
        values[key] = _typed(section, key, value, hints[key], wrong)
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise wrong(f"[{section}] {key} is missing", section)
    try:
        return kind(**values)
    except ValueError as error:
        key = str(error).split(" ", 1)[0]
        raise wrong(f"[{section}] {error}", section, key) from error


def _typed(section: str, key: str, value: Any, hint: Any, wrong: Any) -> Any:
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise wrong(f"[{section}] {key} = {value!r} must be a whole number", section, key)
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise wrong(f"[{section}] {key} = {value!r} must be a number", section, key)
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise wrong(f"[{section}] {key} = {value!r} must be true or false", section, key)
    if hint is str:
        if isinstance(value, str) and "\0" not in value:
            return value
        raise wrong(f"[{section}] {key} = {value!r} must be a text", section, key)
    if isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value):
        return tuple(value)
    raise wrong(f"[{section}] {key} must be a list of texts, one an argument", section, key)


def _environment(table: Mapping[str, Any], wrong: Any) -> dict[str, str]:
    for key, value in table.items():
        if _VARIABLE.fullmatch(key) is None:
            raise wrong(f"[environment] {key!r} is no name of an environment variable", "environment", key)
        _typed("environment", key, value, str, wrong)
    return dict(table)


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
