"""The bytes of the file store: received whole and right, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from airpanda.core.errors import RequestError

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Stored:
    """A file that may be read: where, how long, and its SHA-256 in hexadecimal."""

    path: Path
    size: int
    sha256: str


async def receive(
    path: Path, content: AsyncIterator[bytes], *, sha256: str, max_bytes: int, option: str
) -> tuple[int, str]:
    """Write the new file ``path`` (0600), check and sync it; answer its size and its Adler-32 in hexadecimal.

    Whoever calls removes what a failure leaves. ``option`` of ``[airpanda]`` sets ``max_bytes``.

    Raises:
        RequestError: too long, or the content has another checksum than announced.
    """
    found, adler32, size, pending = hashlib.sha256(), 1, 0, bytearray()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:

        def flush() -> None:
            nonlocal adler32
            found.update(pending)
            adler32 = zlib.adler32(pending, adler32)
            view = memoryview(bytes(pending))
            while view:
                view = view[file.write(view) :]
            pending.clear()

        async for chunk in content:
            size += len(chunk)
            if size > max_bytes:
                raise RequestError(f"a file is longer than {max_bytes} bytes ([airpanda] {option})")
            pending += chunk
            if len(pending) >= _CHUNK:
                await asyncio.to_thread(flush)
        await asyncio.to_thread(flush)
        await asyncio.to_thread(os.fsync, file.fileno())
    if found.hexdigest() != sha256:
        raise RequestError("the content's SHA-256 is not the announced one: it was damaged on its way; send again")
    return size, f"{adler32:08x}"
