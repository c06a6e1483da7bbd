"""Reading and writing files that hold private keys."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from airpanda.x509.errors import CredentialFileError
from airpanda.x509.pem import MAX_PEM_BYTES


def read_private(path: Path) -> bytes:
    """The bytes of a private file. Opened once; every check is on the open file, never on the path again.

    Raises:
        CredentialFileError: missing, a link, not a regular file, another owner, open to group or others, too long.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise CredentialFileError(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CredentialFileError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise CredentialFileError(f"{path} belongs to another account; its owner must be the one who uses it")
        if status.st_mode & 0o7077:
            raise CredentialFileError(f"{path} is open to others; its owner must run: chmod 600")
        return _bounded(file.read(MAX_PEM_BYTES + 1), path)


def read_public(path: Path) -> bytes:
    """The bytes of a certificate file.

    Raises:
        CredentialFileError: unreadable or too long.
    """
    try:
        with path.open("rb") as file:
            return _bounded(file.read(MAX_PEM_BYTES + 1), path)
    except OSError as error:
        raise CredentialFileError(f"{path} cannot be read: {error.strerror}") from error


def write_private(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, 0600, whole or not at all: a new file beside it, then a rename.

    Raises:
        CredentialFileError: the directory does not allow it; nothing is left behind.
    """
    import tempfile  # for writers only: its import takes longer than reading a proxy

    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # O_EXCL, 0600
    except OSError as error:
        raise CredentialFileError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise CredentialFileError(f"{path} cannot be written: {error.strerror}") from error


def _bounded(data: bytes, path: Path) -> bytes:
    if len(data) > MAX_PEM_BYTES:
        raise CredentialFileError(f"{path} is longer than {MAX_PEM_BYTES} bytes")
    return data
