"""The development server's credentials on disk: one 0600 file each, in a 0700 directory of the server's own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret
from airpanda.myproxy.values import Policies
from airpanda.x509.files import read_private, write_private


@dataclass(frozen=True)
class StoredCredential:
    """One credential and what its owner said about it. ``pem`` is leaf, key, chain; ``cred_name`` may be empty."""

    username: str
    cred_name: str
    owner: str
    pem: Secret[bytes] = field(repr=False, compare=False)
    lifetime_s: int = 0
    policies: Policies = field(default_factory=Policies)
    description: Optional[str] = None


class CredentialStore:
    """Keeps credentials by user name and credential name. Each change is one rename, so readers see old or new.

    ``lock`` serialises check-and-change; the directory belongs to one server process.
    """

    def __init__(self, directory: Path) -> None:
        """Open a directory, making it if it is missing.

        Raises:
            ConfigurationError: it belongs to another account or is open to others.
        """
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700, parents=True)
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigurationError(f"the credential directory {directory} must be this account's own and 0700")
        self._directory = directory
        self.lock = threading.Lock()

    def find(self, username: str, cred_name: str) -> Optional[StoredCredential]:
        """The credential, or None."""
        path = self._path(username, cred_name)
        return _read(path) if path.exists() else None

    def owned(self, username: str, owner: str) -> list[StoredCredential]:
        """All credentials under a user name that belong to this DN, the unnamed one first."""
        paths = self._directory.glob(f"{_digest(username)}-*.json")
        found = [credential for credential in map(_read, paths) if credential.owner == owner]
        return sorted(found, key=lambda credential: credential.cred_name)

    def save(self, credential: StoredCredential) -> None:
        """Add or replace."""
        document: dict[str, Any] = {
            "username": credential.username,
            "cred_name": credential.cred_name,
            "owner": credential.owner,
            "pem": credential.pem.reveal().decode("ascii"),
            "lifetime_s": credential.lifetime_s,
            "policies": asdict(credential.policies),
            "description": credential.description,
        }
        write_private(self._path(credential.username, credential.cred_name), json.dumps(document).encode())

    def remove(self, credential: StoredCredential) -> None:
        """Remove; a repeat is no error."""
        self._path(credential.username, credential.cred_name).unlink(missing_ok=True)

    def _path(self, username: str, cred_name: str) -> Path:
        """Digests, so that no name of a client reaches the file system."""
        return self._directory / f"{_digest(username)}-{_digest(cred_name)}.json"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:40]


def _read(path: Path) -> StoredCredential:
    document = json.loads(read_private(path))
    policies, text = Policies(**document.pop("policies")), document.pop("pem")
    return StoredCredential(pem=Secret(text.encode("ascii")), policies=policies, **document)
