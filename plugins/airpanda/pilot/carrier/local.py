"""Files of this node as their owner's: the sandbox's own, and those that ``file:`` URLs name.

Every open of something that exists is without waiting and is looked at by its descriptor afterwards, so that no FIFO,
device or directory is ever read. What is written has another name until it is whole.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import IO, BinaryIO

from airpanda.pilot.carrier.outcome import (
    BROKEN,
    CHANGED,
    NO_OUTPUT,
    NOT_A_FILE,
    TOO_LARGE,
    Digest,
    Trouble,
)

CHUNK = 1024 * 1024
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def check_size(size: int, max_bytes: int) -> None:
    """Hold a size against what is left.

    Raises:
        Trouble: TOO_LARGE.
    """
    if size > max_bytes:
        raise Trouble(TOO_LARGE, f"it has {size} bytes or more, {max_bytes} are left of the job's disk limit")


@contextlib.contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """A regular file that somebody else has put there; links on the way count, since the rights are the owner's.

    Raises:
        Trouble: it is not there, is none, or is not this account's to read.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        raise Trouble.of(error, path) from error
    with _regular(descriptor, NOT_A_FILE, path) as file:
        yield file


@contextlib.contextmanager
def open_output(name: str) -> Iterator[BinaryIO]:
    """A regular file that the payload has left in its sandbox, no link.

    Raises:
        Trouble: NO_OUTPUT.
    """
    try:
        descriptor = os.open(name, _READ | os.O_NOFOLLOW)
    except OSError as error:
        raise Trouble(NO_OUTPUT, f"{name}: {error.strerror}") from error
    with _regular(descriptor, NO_OUTPUT, name) as file:
        yield file


def _regular(descriptor: int, why: str, what: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Trouble(why, f"{what} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


@contextlib.contextmanager
def fresh_file(path: str, *, directory: int = -1) -> Iterator[BinaryIO]:
    """A new file; what an earlier try has left under this name goes first, and so does this one on any error.

    Raises:
        Trouble: it cannot be made.
    """
    where = None if directory < 0 else directory
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=where)
        descriptor = os.open(path, _WRITE, 0o600, dir_fd=where)
    except OSError as error:
        raise Trouble.of(error, path) from error
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            yield file
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=where)
        raise


def give_name(temporary: str, name: str) -> None:
    """A whole file of the sandbox gets its name.

    Raises:
        Trouble: it does not.
    """
    try:
        os.rename(temporary, name)
    except OSError as error:
        raise Trouble.of(error, name) from error


def write_all(file: IO[bytes], data: bytes) -> None:
    """All of it, or Trouble: an unbuffered write may take less."""
    view = memoryview(data)
    while view:
        try:
            view = view[file.write(view) or 0 :]
        except OSError as error:
            raise Trouble.of(error, "writing") from error


def chunks(file: BinaryIO, what: str) -> Iterator[bytes]:
    """Its content to the end, if it has stayed the same meanwhile.

    Raises:
        Trouble: CHANGED, or it cannot be read.
    """
    before = os.fstat(file.fileno())
    size = 0
    while True:
        try:
            chunk = file.read(CHUNK)
        except OSError as error:
            raise Trouble(BROKEN, f"reading {what}: {error.strerror}") from error
        if not chunk:
            break
        size += len(chunk)
        if size > before.st_size:
            raise Trouble(CHANGED, f"{what} grew while it was read")
        yield chunk
    after = os.fstat(file.fileno())
    if size != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Trouble(CHANGED, f"{what} changed while it was read")


def digest_of(file: BinaryIO, what: str) -> Digest:
    """Of the whole file, from its start."""
    file.seek(0)
    digest = Digest()
    for chunk in chunks(file, what):
        digest.update(chunk)
    return digest
