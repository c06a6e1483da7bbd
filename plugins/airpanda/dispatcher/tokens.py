"""Bearer tokens: JWTs signed with the dispatcher's own Ed25519 key, one audience for each kind of caller.

A pilot token is worth one pilot on one queue; a client token names the owners and queues its bearer may act for,
whether it may send pilots, and perhaps the verbs that are all it may.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from airpanda.core.errors import ConfigurationError, NotAuthorisedError
from airpanda.core.secret import Secret
from airpanda.dispatcher.verbs import Verb

PILOT_AUDIENCE = "urn:airpanda:pilot"
CLIENT_AUDIENCE = "urn:airpanda:client"
ISSUER = "airpanda"
MAX_TOKEN_CHARS = 8192
MAX_REMEMBERED = 100_000
_ALGORITHM = "EdDSA"
_REQUIRED = ["exp", "iat", "sub", "aud", "iss", "jti"]
_ALL = "*"


@dataclass(frozen=True)
class PilotIdentity:
    """Whom a valid pilot token speaks for."""

    pilot_id: int
    queue: str
    token_id: str = ""
    issued_at: float = 0.0
    expires_at: float = 0.0


@dataclass(frozen=True)
class ClientIdentity:
    """Whom a valid client token speaks for; ``owners`` and ``queues`` are None where it may act for all.

    ``pilots``: it may send pilots to its queues. That is a right of its own, since pilots serve every owner.
    ``read_only``: it may look and change nothing. ``verbs``: what it may do at all; None: everything, but send pilots.
    ``batches``: whose pilots' logs it may read, whoever has sent them; for people, never in a token.
    """

    name: str
    owners: frozenset[str] | None
    queues: frozenset[str] | None
    pilots: bool = False
    token_id: str = ""
    issued_at: float = 0.0
    expires_at: float = 0.0
    read_only: bool = False
    batches: frozenset[int] = frozenset()
    verbs: frozenset[Verb] | None = None

    @property
    def is_unrestricted(self) -> bool:
        return self.owners is None and self.queues is None


Identity = TypeVar("Identity", PilotIdentity, ClientIdentity)


class Issuer:
    """Mints and verifies with one key. A signature is checked once: what it proved is remembered by a digest.

    Raises:
        ConfigurationError: the key file is missing, readable by others, or no Ed25519 key.
    """

    def __init__(self, key_path: Path) -> None:
        self._key = _read_key(key_path)
        self._public = self._key.public_key()
        self._seen: dict[bytes, PilotIdentity | ClientIdentity] = {}

    @property
    def installation(self) -> str:
        """Eight hexadecimal digits of the public key's digest: whose pilots these are, where several share a site."""
        raw = self._public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return hashlib.sha256(raw).hexdigest()[:8]

    def client_token(
        self,
        name: str,
        owners: Iterable[str],
        queues: Iterable[str],
        lifetime: timedelta,
        now: datetime,
        *,
        pilots: bool = False,
        read_only: bool = False,
        verbs: Iterable[Verb] | None = None,
    ) -> Secret[str]:
        """For an operator's Connection or a person. ``["*"]`` stands for all owners, or all queues.

        Where ``verbs`` are named, nothing else is allowed, and ``pilots`` says nothing.
        """
        claims = {
            "aud": CLIENT_AUDIENCE,
            "sub": name,
            "owners": list(owners),
            "queues": list(queues),
            "pilots": pilots,
            "read_only": read_only,
        }
        if verbs is not None:
            claims["verbs"] = sorted(verbs)
        return self._mint(claims, lifetime, now)

    def pilot_token(self, pilot_id: int, queue: str, lifetime: timedelta, now: datetime) -> Secret[str]:
        """For one pilot."""
        return self._mint({"aud": PILOT_AUDIENCE, "sub": str(pilot_id), "queue": queue}, lifetime, now)

    def verify_pilot(self, token: Secret[str], now: datetime) -> PilotIdentity:
        """Raises:
        NotAuthorisedError: not a valid pilot token now.
        """
        identity = self._known(token, now)
        if identity is None:
            claims = self._verify(token, PILOT_AUDIENCE, now)
            subject, queue = claims["sub"], claims.get("queue")
            if not subject.isascii() or not subject.isdigit() or not isinstance(queue, str):
                raise _unknown()
            identity = self._remember(token, PilotIdentity(int(subject), queue, *_life(claims)))
        if not isinstance(identity, PilotIdentity):
            raise _unknown()
        return identity

    def verify_client(self, token: Secret[str], now: datetime) -> ClientIdentity:
        """Raises:
        NotAuthorisedError: not a valid client token now.
        """
        identity = self._known(token, now)
        if identity is None:
            claims = self._verify(token, CLIENT_AUDIENCE, now)
            owners, queues = _names(claims.get("owners")), _names(claims.get("queues"))
            read_only = claims.get("read_only", False) is not False
            verbs = _verbs(claims["verbs"]) if "verbs" in claims else None
            pilots = (claims.get("pilots") is True if verbs is None else Verb.PILOTS in verbs) and not read_only
            found = ClientIdentity(
                claims["sub"], owners, queues, pilots, *_life(claims), read_only=read_only, verbs=verbs
            )
            identity = self._remember(token, found)
        if not isinstance(identity, ClientIdentity):
            raise _unknown()
        return identity

    def whose(self, token: Secret[str], now: datetime) -> PilotIdentity | ClientIdentity | None:
        """Whom a token speaks for, of whatever kind; None: it is not valid now."""
        for verify in (self.verify_pilot, self.verify_client):
            with contextlib.suppress(NotAuthorisedError):
                return verify(token, now)
        return None

    def _known(self, token: Secret[str], now: datetime) -> PilotIdentity | ClientIdentity | None:
        """Whom a token spoke for when its signature was checked; a token has one audience only."""
        identity = self._seen.get(_digest(token))
        if identity is not None and identity.expires_at <= now.timestamp():
            raise _expired()
        return identity

    def _remember(self, token: Secret[str], identity: Identity) -> Identity:
        if len(self._seen) >= MAX_REMEMBERED:
            self._seen.clear()  # costs each caller one more check of a signature
        self._seen[_digest(token)] = identity
        return identity

    def _mint(self, claims: dict[str, Any], lifetime: timedelta, now: datetime) -> Secret[str]:
        whole = {**claims, "iss": ISSUER, "iat": now, "exp": now + lifetime, "jti": secrets.token_hex(16)}
        return Secret(jwt.encode(whole, self._key, algorithm=_ALGORITHM))

    def _verify(self, token: Secret[str], audience: str, now: datetime) -> dict[str, Any]:
        if len(token.reveal()) > MAX_TOKEN_CHARS:
            raise _unknown()
        try:
            claims = jwt.decode(
                token.reveal(),
                self._public,
                algorithms=[_ALGORITHM],
                audience=audience,
                issuer=ISSUER,
                # The clock is an argument here; iat says nothing that exp does not.
                options={"require": _REQUIRED, "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            raise _unknown() from None
        if not all(isinstance(claims[name], int | float) for name in ("exp", "iat")):
            raise _unknown()
        if claims["exp"] <= now.timestamp():
            raise _expired()
        return claims


def create_key(path: Path) -> None:
    """Write a fresh key, 0600.

    Raises:
        FileExistsError: there is a key already; it is not replaced.
    """
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            pem = file.read(65536)
    except OSError as error:
        raise ConfigurationError(f"[airpanda] signing_key {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigurationError(f"[airpanda] signing_key {path} has mode {mode:04o}: others may read it; chmod 600 it")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise ConfigurationError(f"[airpanda] signing_key {path} holds no unencrypted PEM key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"[airpanda] signing_key {path} is no Ed25519 key")
    return key


def _names(claim: object) -> frozenset[str] | None:
    """None for all; a claim that is no list of names allows nobody."""
    if not isinstance(claim, list) or not all(isinstance(name, str) for name in claim):
        return frozenset()
    return None if claim == [_ALL] else frozenset(claim)


def _verbs(claim: object) -> frozenset[Verb]:
    """Those that are known; a claim that is no list names none."""
    known = {str(verb): verb for verb in Verb}
    named = claim if isinstance(claim, list) else []
    return frozenset(known[name] for name in named if isinstance(name, str) and name in known)


def _life(claims: dict[str, Any]) -> tuple[str, float, float]:
    return str(claims["jti"]), float(claims["iat"]), float(claims["exp"])


def _digest(token: Secret[str]) -> bytes:
    return hashlib.sha256(token.reveal().encode()).digest()


def _expired() -> NotAuthorisedError:
    return NotAuthorisedError("the bearer token has expired: get a fresh one", authenticated=False)


def _unknown() -> NotAuthorisedError:
    return NotAuthorisedError("the bearer token is not one of this dispatcher for this use", authenticated=False)
