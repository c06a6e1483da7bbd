"""The bytes of the file store: received whole and right, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import TypeVar

from airpanda.core.clock import utcnow
from airpanda.core.errors import RequestError, ServiceError

_CHUNK = 1024 * 1024
_COMING = "coming"
_RETRY_S = 60
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A file that may be read: where, how long, and its SHA-256 in hexadecimal."""

    path: Path
    size: int
    sha256: str


async def receive(
    root: Path, blob: str, content: AsyncIterator[bytes], *, sha256: str, max_bytes: int, option: str
) -> tuple[int, str]:
    """Write the new file ``blob`` (0600) below ``root``, check and sync it; answer its size and its Adler-32 as hex.

    It lies among those that are coming until it is whole. Whoever calls removes it where what follows fails.
    ``option`` of ``[airpanda]`` sets ``max_bytes``.

    Raises:
        RequestError: too long, or the content has another checksum than announced.
        ServiceError: the disk is full or fails; the same upload may succeed later.
    """
    coming, found, adler32, size, pending = root / _COMING / Path(blob).name, hashlib.sha256(), 1, 0, bytearray()

    def flush() -> None:
        nonlocal adler32
        found.update(pending)
        adler32 = zlib.adler32(pending, adler32)
        view = memoryview(bytes(pending))
        while view:
            view = view[file.write(view) :]
        pending.clear()

    file = await _at_the_disk(lambda: _new(coming))
    try:
        with file:
            async for chunk in content:
                size += len(chunk)
                if size > max_bytes:
                    raise RequestError(f"a file is longer than {max_bytes} bytes ([airpanda] {option})")
                pending += chunk
                if len(pending) >= _CHUNK:
                    await _at_the_disk(flush)
            await _at_the_disk(flush)
            if found.hexdigest() != sha256:
                raise RequestError(
                    "the content's SHA-256 is not the announced one: it was damaged on its way; send again"
                )
            await _at_the_disk(lambda: _keep(file, coming, root / blob))
    except BaseException:
        coming.unlink(missing_ok=True)
        raise
    return size, f"{adler32:08x}"


def broken_off(root: Path, after: timedelta) -> Iterator[Path]:
    """What uploads have left whose gateway was killed: nobody has written to it for so long."""
    directory, before = root / _COMING, (utcnow() - after).timestamp()
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        try:
            if path.stat().st_mtime < before:
                yield path
        except FileNotFoundError:  # it is whole, or refused, since
            continue


async def _at_the_disk(step: Callable[[], _T]) -> _T:
    try:
        return await asyncio.to_thread(step)
    except OSError as error:
        _log.error("the file store takes nothing: %s", error)
        raise ServiceError(
            f"the file store takes nothing now ({error.strerror}): the service's operators must make room or mend it;"
            " try again later",
            retry_after_s=_RETRY_S,
        ) from error


def _new(path: Path) -> FileIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")


def _keep(file: FileIO, coming: Path, path: Path) -> None:
    """Under its own name before it is synced, so that both are on the disk then."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    coming.rename(path)
    os.fsync(file.fileno())
