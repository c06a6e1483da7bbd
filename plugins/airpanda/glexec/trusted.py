"""Which files may steer the launcher: those that nobody but root can change, themselves and every parent."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from airpanda.core.errors import ConfigurationError


def check_trusted(path: Path, *, owners: Collection[int] = (0,)) -> None:
    """Refuse a file or directory that an account other than root could change or replace.

    ``owners`` may own the last component; its parents belong to root. Symbolic links are followed, and both ends
    are checked.

    Raises:
        ConfigurationError: names the component and what is wrong with it.
    """
    if not path.is_absolute():
        raise ConfigurationError(f"{path} must be an absolute path")
    real = Path(os.path.realpath(path))
    for place in {path, real}:
        for parent in place.parents:
            _check_one(parent, (0,))
    _check_one(real, owners)


def _check_one(path: Path, owners: Collection[int]) -> None:
    try:
        info = os.stat(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; the launcher needs it") from error
    if info.st_uid not in owners:
        raise ConfigurationError(f"{path} belongs to uid {info.st_uid}; it must belong to root")
    if stat.S_IMODE(info.st_mode) & 0o022:
        raise ConfigurationError(f"{path} is writable by group or others (mode {stat.S_IMODE(info.st_mode):04o})")


def check_unchangeable(path: Path) -> None:
    """Refuse a program that an account other than root could replace; a sticky directory above it is no danger.

    Raises:
        ConfigurationError: names the component.
    """
    real = Path(os.path.realpath(path))
    for place in {path, *path.parents, real, *real.parents}:
        info = os.stat(place)
        open_to_others = stat.S_IMODE(info.st_mode) & 0o022 and not info.st_mode & stat.S_ISVTX
        if info.st_uid != 0 or open_to_others:
            raise ConfigurationError(f"{place} can be changed by others than root, and the launcher would run it")


def read_trusted(path: Path, *, limit: int = 16 * 1024 * 1024) -> str:
    """The text of a file that passed ``check_trusted``.

    Raises:
        ConfigurationError: unsafe, unreadable, too large or not UTF-8.
    """
    check_trusted(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise ConfigurationError(f"{path} is over {limit} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start})") from error
