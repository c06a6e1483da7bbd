"""Files through the switch: a tar stream, packed and unpacked with no trust in the other side."""

from __future__ import annotations

import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from airpanda.core.errors import RequestError, ServiceError

_NAME = re.compile(r"[A-Za-z0-9_.+:@%=,~-]{1,255}")
_CHUNK = 1024 * 1024
_OVERHEAD = 16 * 1024 * 1024  # headers, padding, what is passed over


class Readable(Protocol):
    """A stream: up to so many bytes, none at its end."""

    def read(self, size: int, /) -> bytes: ...


def check_names(names: Iterable[str]) -> list[str]:
    """The same names, if each is one plain component: no directories, so no link on the way can matter.

    Raises:
        RequestError: one is not.
    """
    checked = list(names)
    for name in checked:
        if not _NAME.fullmatch(name) or name in (".", "..") or name.startswith("-"):
            raise RequestError(f"{name[:100]!r} is not a plain file name; use letters, digits and . _ + : @ % = , ~ -")
    return checked


def pack(files: Mapping[str, Path]) -> IO[bytes]:
    """An open, unnamed archive of these regular files, at its start. Executable stays executable.

    Raises:
        RequestError: a name is not plain, or a file cannot be read or is no regular file.
    """
    check_names(files)
    archive = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, path in files.items():
                _add(tar, name, path)
    except BaseException:
        archive.close()
        raise
    archive.seek(0)
    return archive


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RequestError(f"{path} is not a regular file")
            member = tarfile.TarInfo(name)
            member.size, member.mtime = status.st_size, int(status.st_mtime)
            member.mode = 0o700 if status.st_mode & stat.S_IXUSR else 0o600
            tar.addfile(member, file)
    except OSError as error:
        raise RequestError(f"{path} cannot be put into the sandbox: {error.strerror}") from error


def unpack(stream: Readable, names: Sequence[str], into: Path, *, max_bytes: int) -> dict[str, Path]:
    """The regular files of these names in an archive, written as new files of ours, mode 0600.

    Links, devices, directories and other names are passed over. An archive that breaks off gives what came whole. The
    stream is read to its end.

    Raises:
        RequestError: over ``max_bytes`` in all; the stream is much longer, or has a member of negative size.
        ServiceError: this side cannot write them.
    """
    bounded = _Bounded(stream, max_bytes)
    found = _members(bounded, names, into, max_bytes)
    while bounded.read(_CHUNK):
        pass
    return found


class _Bounded:
    """A stream that is an error when it is much longer than the files that are wanted."""

    def __init__(self, stream: Readable, max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes + _OVERHEAD

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise RequestError("the payload's archive is far over the limit of its files")
        return data


def _members(stream: Readable, names: Sequence[str], into: Path, max_bytes: int) -> dict[str, Path]:
    found: dict[str, Path] = {}
    left = max_bytes
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]  # it needs read() only
            for member in tar:
                if member.size < 0:
                    raise RequestError("the payload's archive has a member of negative size")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name not in names:
                    continue
                left -= member.size
                if left < 0:
                    raise RequestError(f"the files of the payload are over the limit of {max_bytes} bytes")
                source = tar.extractfile(member)
                if source is not None and member.name not in found:
                    found[member.name] = _write(source, into / member.name)
    except (tarfile.TarError, EOFError):
        return found
    return found


def _write(source: IO[bytes], path: Path) -> Path:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o600), "wb")
    except OSError as error:
        raise ServiceError(f"{path} cannot be made: {error.strerror}") from error
    try:
        with file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
    except (tarfile.TarError, EOFError):
        path.unlink()
        raise
    except OSError as error:
        path.unlink()
        raise ServiceError(f"{path} cannot be written: {error.strerror}") from error
    return path
