"""``file:`` URLs: files on this node, or of a file system that is mounted on it."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from airpanda.pilot.carrier.local import (
    check_size,
    chunks,
    digest_of,
    fresh_file,
    give_name,
    open_input,
    open_output,
    write_all,
)
from airpanda.pilot.carrier.outcome import NOT_A_FILE, REFUSED, Digest, Trouble

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def path_of(url: str) -> str:
    """The path that a ``file:`` URL names.

    Raises:
        Trouble: REFUSED, it can be none.
    """
    path = unquote_to_bytes(urlsplit(url).path)
    if b"\0" in path or not path.startswith(b"/"):
        raise Trouble(REFUSED, "its URL names no path")
    return os.fsdecode(path)


def fetch(transfer: dict[str, Any], max_bytes: int, ca_dir: str) -> Digest:
    """Copy the file into the sandbox, under its name once it is whole and what was declared.

    Raises:
        Trouble: nothing has arrived.
    """
    path, digest = path_of(transfer["url"]), Digest()
    with open_input(path) as source:
        check_size(os.fstat(source.fileno()).st_size, max_bytes)
        with fresh_file(transfer["temporary"]) as target:
            for chunk in chunks(source, path):
                digest.update(chunk)
                write_all(target, chunk)
            digest.demand(transfer, "the declared one")
            give_name(transfer["temporary"], transfer["lfn"])
    return digest


def send(transfer: dict[str, Any], max_bytes: int, ca_dir: str) -> Digest:
    """Copy an output to its place; a regular file that is there is replaced in one step by a whole one.

    Raises:
        Trouble: what was there before is there still.
    """
    path = path_of(transfer["url"])
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise Trouble(REFUSED, f"{path} names no file")
    with open_output(transfer["lfn"]) as source:
        check_size(os.fstat(source.fileno()).st_size, max_bytes)
        try:
            directory = os.open(folder, _DIRECTORY)
        except OSError as error:
            raise Trouble.of(error, folder) from error
        try:
            _check_replaceable(name, directory, path)
            return _copy(source, transfer, name, directory)
        finally:
            os.close(directory)


def _copy(source: Any, transfer: dict[str, Any], name: str, directory: int) -> Digest:
    digest, temporary = Digest(), transfer["temporary"]
    with fresh_file(temporary, directory=directory) as target:
        for chunk in chunks(source, transfer["lfn"]):
            digest.update(chunk)
            write_all(target, chunk)
        try:
            os.fsync(target.fileno())
            with os.fdopen(os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb") as again:
                digest_of(again, "what was written").demand(digest.to_wire(), "the payload's")
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            raise Trouble.of(error, name) from error
    with contextlib.suppress(OSError):  # some file systems cannot; the file itself is safe
        os.fsync(directory)
    return digest


def _check_replaceable(name: str, directory: int, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(name, dir_fd=directory).st_mode):
            raise Trouble(NOT_A_FILE, f"{path} is there and is not a regular file; it is not replaced")
