"""The pilot in one file: a zip archive of the rooms a worker node needs, reproducible, with its SHA-256 beside it.

``include/pilot/wrapper.sh`` verifies and unpacks it; nothing is compiled on the node. The same file serves every
computing element.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import airpanda
from airpanda.core.errors import ConfigurationError

# What is not imported: started by its path, or sent to another account.
_BEGINNINGS = ("airpanda.pilot.__main__", "airpanda.glexec.supervisor", "airpanda.pilot.carrier.main")
_WHEEL = re.compile(r"(cryptography|cffi|pycparser|typing_extensions)-[^-]+(-[^-]+)?-([^-]+)-([^-]+)-([^-]+)\.whl")
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    """What was written."""

    path: Path
    sha256: str
    size: int
    files: int


def write_bundle(output: Path, *, wheels: Sequence[Path] = ()) -> Bundle:
    """Write the bundle to ``output``, and ``<output>.sha256`` in the form that ``sha256sum -c`` reads.

    Args:
        wheels: wheels of ``cryptography`` and ``cffi`` to take along, for nodes that lack them; the node takes those
            that fit its Python.

    Raises:
        ConfigurationError: a file cannot be read or written, or something is no such wheel.
    """
    try:
        members = dict(_sources()) | dict(_wheels(wheels))
        data = _zip(members)
        digest = hashlib.sha256(data).hexdigest()
        _replace(output, data)
        _replace(output.with_name(f"{output.name}.sha256"), f"{digest}  {output.name}\n".encode())
    except OSError as error:
        raise ConfigurationError(f"the bundle cannot be written: {error}") from error
    return Bundle(output, digest, len(data), len(members))


def _sources() -> Iterator[tuple[str, bytes]]:
    """What the pilot imports, directly or not. What runs as root on a node is installed by its site, not sent there."""
    root = Path(airpanda.__file__).parent.parent
    todo, seen = list(_BEGINNINGS), set()
    while todo:
        name = todo.pop()
        path = _source_of(root, name)
        if path is None or path in seen:
            continue
        seen.add(path)
        data = path.read_bytes()
        todo += [name.rpartition(".")[0], *_imports(data)]
        yield path.relative_to(root).as_posix(), data


def _source_of(root: Path, name: str) -> Optional[Path]:
    """The file of a module or package of ours; None for a name inside a module, or another's."""
    place = root.joinpath(*name.split("."))
    candidates = (place.with_suffix(".py"), place / "__init__.py") if name.startswith("airpanda") else ()
    return next((path for path in candidates if path.is_file()), None)


def _imports(data: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _wheels(wheels: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Whole, under ``wheels/``: which of them fits is known on the node only."""
    for path in wheels:
        if _WHEEL.fullmatch(path.name) is None:
            raise ConfigurationError(
                f"{path.name} is no wheel of cryptography, cffi or pycparser; download those with pip"
            )
        yield f"wheels/{path.name}", path.read_bytes()


def _zip(members: dict[str, bytes]) -> bytes:
    """The same bytes for the same content, whoever builds it and when."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted(members.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".whl") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    fresh.chmod(0o644)
    fresh.replace(path)
