"""grid-mapfile, ban file, and the names of leases in a gridmapdir. Text to values; no I/O.

Source: LCMAPS 1.6 plug-ins localaccount, poolaccount and ban_dn; gridmapdir patch of Globus.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Optional

from airpanda.core.errors import ConfigurationError
from airpanda.core.records import dataclass
from airpanda.x509.policy import normal_dn

_LINE = re.compile(r'\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+))(?:\s+(?P<target>\S+))?\s*')
_ACCOUNT = re.compile(r"\.?[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789")


@dataclass(frozen=True)
class Target:
    """What a mapfile line names: one account, or with ``pool`` the prefix of pool accounts."""

    name: str
    pool: bool = False


@dataclass(frozen=True)
class Line:
    """One line: a DN or FQAN, exact or ending in ``*``, and its first target."""

    pattern: str
    target: Target

    def matches(self, name: str) -> bool:
        """Whole comparison; only one ``*``, at the very end, stands for more."""
        if self.pattern.endswith("*"):
            return name.startswith(self.pattern[:-1])
        return name == self.pattern


def parse_gridmap(text: str, *, where: str) -> list[Line]:
    """The lines of a grid-mapfile, in order. ``a,b`` means a.

    Raises:
        ConfigurationError: a line that cannot be read; names file and line. A mapfile is used whole or not at all.
    """
    lines = []
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip() or raw.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(raw)
        target = match["target"].split(",")[0] if match and match["target"] else ""
        if match is None or not _ACCOUNT.fullmatch(target):
            raise ConfigurationError(f'{where}, line {number}: not of the form "DN" account')
        lines.append(Line(_pattern(match, where, number), Target(target.lstrip("."), target.startswith("."))))
    return lines


def parse_banfile(text: str, *, where: str) -> list[str]:
    """The patterns of a ban file: one quoted DN or FQAN a line, anything after it ignored.

    Raises:
        ConfigurationError: a line that cannot be read; a ban that cannot be read must not be skipped.
    """
    patterns = []
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip() or raw.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(raw)
        if match is None:
            raise ConfigurationError(f'{where}, line {number}: not of the form "DN"')
        patterns.append(_pattern(match, where, number))
    return patterns


def _pattern(match: re.Match[str], where: str, number: int) -> str:
    pattern = str(match["quoted"] if match["quoted"] is not None else match["bare"])
    if not pattern.startswith("/") or "*" in pattern[:-1]:
        raise ConfigurationError(f"{where}, line {number}: a name starts with '/' and has '*' only at its end")
    return pattern


def find(lines: Sequence[Line], name: str) -> Optional[Target]:
    """The target of the first line that matches, or None."""
    return next((line.target for line in lines if line.matches(name)), None)


def is_listed(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a pattern names any of these: the DN and the FQANs of one credential. Compared to the letter."""
    lines = [Line(pattern, Target("listed")) for pattern in patterns]
    return any(line.matches(name) for line in lines for name in names)


def is_banned(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """As ``is_listed``, and whatever older programs called an attribute: a ban for ``/Email=`` is one for
    ``/emailAddress=``."""
    return is_listed(patterns, names) or is_listed([*map(normal_dn, patterns)], [*map(normal_dn, names)])


def lease_name(dn: str) -> str:
    """The file name of a DN's lease: lower case, all but a-z and 0-9 as ``%xx``. Not one-to-one.

    The DN is in one-line form, where a byte outside ASCII is already the text ``\\xC3``, as LCMAPS has it.
    """
    return "".join(chr(b) if b in _PLAIN else f"%{b:02x}" for b in dn.lower().encode())


def pool_members(names: Sequence[str], prefix: str) -> list[str]:
    """The account files of a pool: the prefix and digits, in order. ``.dt`` does not take ``dtx1``."""
    member = re.compile(re.escape(prefix) + r"[0-9]+")
    return sorted(name for name in names if member.fullmatch(name))
