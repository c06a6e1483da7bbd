"""Who: distinguished names, VOMS attributes, payload owners, local accounts, and the switch policy.

DNs are data and hostile: they are compared whole, never by common name, never as patterns, and never
become part of a command line.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Optional

from airpanda.core.errors import RequestError
from airpanda.core.records import dataclass

MAX_DN_CHARS = 1024
_FQAN = re.compile(
    r"(?P<group>(?:/[A-Za-z0-9._-]+)+?)(?:/Role=(?P<role>[A-Za-z0-9._-]+))?(?:/Capability=(?P<cap>[A-Za-z0-9._-]+))?"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_dn(dn: str) -> str:
    """The same DN, in OpenSSL's one-line form (``/DC=org/CN=Alice``), if it can be one.

    Raises:
        RequestError: empty, too long, not starting with ``/``, or holding control characters.
    """
    if not dn.startswith("/") or "=" not in dn:
        raise RequestError("a distinguished name starts with '/' and holds at least one 'KEY=value'")
    if len(dn) > MAX_DN_CHARS:
        raise RequestError(f"a distinguished name of {len(dn)} characters is over the limit of {MAX_DN_CHARS}")
    if _CONTROL.search(dn):
        raise RequestError("a distinguished name must not hold control characters")
    return dn


@dataclass(frozen=True)
class Fqan:
    """One VOMS attribute, ``/vo/group/Role=role``. A role of None is VOMS's ``Role=NULL``.

    Source: VOMS attribute certificate format (OGF GFD.182), 3.4.
    """

    group: str
    role: Optional[str] = None

    @classmethod
    def parse(cls, text: str) -> Fqan:
        """Parse one FQAN; ``Role=NULL`` and any capability are dropped, as VOMS itself does.

        Raises:
            RequestError: not an FQAN.
        """
        match = _FQAN.fullmatch(text)
        if match is None:
            raise RequestError(f"not a VOMS attribute: {text[:200]!r}")
        role = match["role"]
        return cls(group=match["group"], role=None if role in (None, "NULL") else role)

    @property
    def vo(self) -> str:
        return self.group.split("/")[1]

    def __str__(self) -> str:
        return self.group if self.role is None else f"{self.group}/Role={self.role}"


@dataclass(frozen=True)
class Account:
    """A local account as the operating system knows it. ``gids`` starts with the primary group."""

    name: str
    uid: int
    gids: tuple[int, ...]


class IdentityPolicy(str, Enum):
    """What a queue demands of the identity switch (glideinWMS's three words).

    ``REQUIRED``: no switch, no payload. ``OPTIONAL``: where no launcher is *installed*, containment without a
    change of account is accepted and recorded as ``identity_switched = false``; a launcher that *refuses* still
    means no payload. ``NEVER``: no switch, recorded as such.
    """

    REQUIRED = "REQUIRED"
    OPTIONAL = "OPTIONAL"
    NEVER = "NEVER"
