"""What an installation has written, file by file, so that its removal removes exactly that."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from airpanda.core.errors import ConfigurationError


def put(path: Path, text: str, mode: int) -> None:
    """A file with this content and mode: the old one or the new one, at any moment."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(descriptor, mode)
    temporary.replace(path)


class Manifest:
    """A list of files with the SHA-256 of what was written into each; a path that is not in it was not written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = self._read()

    def __len__(self) -> int:
        return len(self._files)

    def has_changed(self, path: Path) -> bool:
        """Whether there is a file that this list does not know, or that somebody has changed since."""
        return path.exists() and self._files.get(str(path)) != _digest(path)

    def paths(self) -> list[Path]:
        """The files it knows."""
        return [Path(name) for name in self._files]

    def write(self, paths: Iterable[Path], kept: Iterable[Path] = ()) -> None:
        """Know these files, as they are now, those kept as they were once written, if they are there, and no others."""
        old = {str(path): self._files[str(path)] for path in kept if path.exists()}
        self._files = {**old, **{str(path): _digest(path) for path in paths if path != self._path}}
        put(self._path, json.dumps(self._files, indent=0, sort_keys=True) + "\n", 0o644)

    def remove(self) -> list[Path]:
        """Remove what is as it was written, the directories that are empty then, and the list.

        Returns:
            The files that stay, because somebody has changed them.
        """
        changed = [path for path in map(Path, self._files) if self.has_changed(path)]
        for path in map(Path, self._files):
            if path not in changed:
                path.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        inside = self._path.parent.parent
        parents = {parent for name in [*self._files, str(self._path)] for parent in Path(name).parents}
        for directory in sorted((p for p in parents if inside in p.parents), key=lambda p: -len(p.parts)):
            with contextlib.suppress(OSError):  # not empty, or gone
                directory.rmdir()
        self._files = {}
        return changed

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ConfigurationError(f"{self._path} cannot be read; install again to write it anew") from error
        return {str(name): str(digest) for name, digest in dict(found).items()}


def files_below(directory: Path) -> list[Path]:
    """All regular files."""
    return [Path(parent, name) for parent, _, names in os.walk(directory) for name in sorted(names)]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
