"""Commands, requests and what a server tells about a credential. Values and their rules; no I/O, no clock."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Optional

from airpanda.core.errors import RequestError
from airpanda.core.secret import Secret

DEFAULT_PORT = 7512
MAX_MESSAGE_BYTES = 16 * 1024  # one message is one TLS record
MIN_PASSPHRASE_BYTES, MAX_PASSPHRASE_BYTES = 6, 1023
NO_PASSPHRASE: Secret[str] = Secret("")
UNUSED_PASSPHRASE: Secret[str] = Secret("PASSPHRASE")  # what INFO and DESTROY carry

REQUEST_KEYS = (
    "VERSION",
    "COMMAND",
    "USERNAME",
    "PASSPHRASE",
    "NEW_PHRASE",
    "LIFETIME",
    "RETRIEVER",
    "RENEWER",
    "KEYRETRIEVERS",
    "RETRIEVER_TRUSTED",
    "CRED_NAME",
    "CRED_DESC",
    "TRUSTED_CERTS",
    "VONAME",
    "VOMSES",
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Some servers look for a key anywhere in the text, so that no value may contain one.
_TOKENS = tuple(f"{key}=" for key in (*REQUEST_KEYS, "RESPONSE", "ERROR", "AUTHORIZATION_DATA", "ADDL_CREDS"))


class Command(IntEnum):
    """Source: MyProxy protocol, version 2 (myproxy_protocol.h)."""

    GET = 0
    PUT = 1
    INFO = 2
    DESTROY = 3
    CHANGE_PASSPHRASE = 4
    STORE = 5
    RETRIEVE = 6
    GET_TRUSTROOTS = 7


@dataclass(frozen=True)
class Policies:
    """Who may do what with one stored credential: patterns over DNs, None for the server's default.

    Build a pattern for exactly one DN with ``airpanda.myproxy.policy.exactly``.
    """

    retriever: Optional[str] = None
    renewer: Optional[str] = None
    key_retriever: Optional[str] = None
    trusted_retriever: Optional[str] = None


@dataclass(frozen=True)
class Request:
    """One request. Checked when made: no field can break out of its line.

    Raises:
        RequestError: a control character, a protocol key inside a value, or a passphrase of unfit length.
    """

    command: Command
    username: str
    passphrase: Secret[str] = field(default=NO_PASSPHRASE, compare=False)
    new_passphrase: Optional[Secret[str]] = field(default=None, compare=False)
    lifetime_s: int = 0
    policies: Policies = Policies()
    cred_name: Optional[str] = None
    description: Optional[str] = None
    trusted_certs: bool = False
    voms: tuple[str, ...] = ()
    voms_servers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.lifetime_s < 0:
            raise RequestError("a MyProxy lifetime cannot be negative")
        for name, value in self.texts():
            check_value(name, value)
        if self.command not in (Command.INFO, Command.DESTROY):
            check_passphrase(self.passphrase)
        if self.new_passphrase is not None:
            check_passphrase(self.new_passphrase)

    def texts(self) -> list[tuple[str, str]]:
        """Keys and values in the order of the wire; absent ones left out. The passphrases are among them."""
        policies = self.policies
        fields: list[tuple[str, Optional[str]]] = [
            ("VERSION", "MYPROXYv2"),
            ("COMMAND", str(int(self.command))),
            ("USERNAME", self.username),
            ("PASSPHRASE", self.passphrase.reveal()),
            ("NEW_PHRASE", self.new_passphrase.reveal() if self.new_passphrase is not None else None),
            ("LIFETIME", str(self.lifetime_s)),
            ("RETRIEVER", policies.retriever),
            ("RENEWER", policies.renewer),
            ("KEYRETRIEVERS", policies.key_retriever),
            ("RETRIEVER_TRUSTED", policies.trusted_retriever),
            ("CRED_NAME", self.cred_name),
            ("CRED_DESC", self.description),
            ("TRUSTED_CERTS", "1" if self.trusted_certs else None),
            *(("VONAME", name) for name in self.voms),
            *(("VOMSES", server) for server in self.voms_servers),
        ]
        return [(key, value) for key, value in fields if value is not None]


@dataclass(frozen=True)
class CredentialInfo:
    """What INFO says about one credential; an empty name is the user's unnamed default."""

    cred_name: str
    owner: str
    not_before: datetime
    not_after: datetime
    policies: Policies = Policies()
    description: Optional[str] = None
    locked: Optional[str] = None


def check_value(name: str, value: str) -> str:
    """The same value, if it can stand in a message.

    Raises:
        RequestError: it holds a control character, a protocol key, or no valid Unicode; names the field only.
    """
    if _CONTROL.search(value):
        raise RequestError(f"the MyProxy field {name} must not hold control characters")
    upper = value.upper()
    if name != "VERSION" and any(token in upper for token in _TOKENS):
        raise RequestError(f"the MyProxy field {name} must not hold a word of the protocol followed by '='")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"the MyProxy field {name} is not valid Unicode") from None
    return value


def check_passphrase(passphrase: Secret[str]) -> Secret[str]:
    """The same passphrase, if it is empty or of fit length.

    Raises:
        RequestError: under 6 or over 1023 bytes.
    """
    size = len(passphrase.reveal().encode("utf-8", "surrogatepass"))
    if size and not MIN_PASSPHRASE_BYTES <= size <= MAX_PASSPHRASE_BYTES:
        raise RequestError(f"a MyProxy passphrase has {MIN_PASSPHRASE_BYTES} to {MAX_PASSPHRASE_BYTES} bytes or none")
    return passphrase


def seconds(lifetime: timedelta) -> int:
    """A lifetime as the wire has it.

    Raises:
        RequestError: not more than zero, which a server would read as "as long as possible".
    """
    if lifetime < timedelta(seconds=1):
        raise RequestError("a MyProxy lifetime is at least one second")
    return int(lifetime.total_seconds())
