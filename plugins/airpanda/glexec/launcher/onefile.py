"""The bytecode of all modules that a launch imports, in one file: no search for each, no file of each to open.

A launcher that sudo starts imports 120 modules; finding and opening them is a twentieth of its time. The file is
written by an installation and is as much root's as the modules beside it. A module whose source has changed since, by
the rule that Python has for its own bytecode (time and size), is imported as ever; so is everything under another
version of Python.
"""

from __future__ import annotations

import marshal
import mmap
import os
import sys
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

_Entry = tuple[bool, str, int, int, int, int]
"""Whether it is a package, its source, that one's time (ns) and size, where its bytecode begins, and how long it is."""
_PYTHON = f"{sys.version} {sys.implementation.cache_tag}"


class OneFile:
    """Finds and loads its modules; for ``sys.meta_path``."""

    def __init__(self, index: dict[str, _Entry], data: memoryview) -> None:
        self._index = index
        self._data = data

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        entry = self._index.get(name)
        if entry is None:
            return None
        is_package, source, time_ns, size, _, _ = entry
        try:
            status = os.stat(source)
        except OSError:
            return None
        if (status.st_mtime_ns, status.st_size) != (time_ns, size):
            return None
        make_spec: Any = type(__spec__)  # importing it by name would import half of importlib
        spec: ModuleSpec = make_spec(name, self, origin=source, is_package=is_package)
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(source.rpartition("/")[0])
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        *_, at, length = self._index[module.__name__]
        exec(marshal.loads(self._data[at : at + length]), module.__dict__)  # noqa: S102, S302 - root's own file


def use(path: str) -> None:
    """Import from this file from now on, where it fits; a missing or another Python's file changes nothing."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ))
        python, index = marshal.loads(data)  # noqa: S302 - root's own file; what follows is read later
        if python == _PYTHON:
            sys.meta_path.insert(0, OneFile(index, data))
    except (OSError, EOFError, ValueError, TypeError):
        return


def content() -> bytes:
    """A file of all modules with a source that are imported now."""
    entries: dict[str, tuple[bool, str, int, int]] = {}
    codes: dict[str, bytes] = {}
    for name, module in sorted(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is None or not str(spec.origin).endswith(".py"):
            continue
        source: Optional[str] = spec.loader.get_source(name)
        if source is not None:
            status = os.stat(spec.origin)
            is_package = spec.submodule_search_locations is not None
            entries[name] = (is_package, spec.origin, status.st_mtime_ns, status.st_size)
            codes[name] = marshal.dumps(_without_docstrings(source, spec.origin))
    return _laid_out(entries, codes)


def _without_docstrings(source: str, path: str) -> CodeType:
    """Bytecode as ``python -OO`` makes it, but with its assertions: a third less to read."""
    import ast  # only an installation needs it

    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def _laid_out(entries: dict[str, tuple[bool, str, int, int]], codes: dict[str, bytes]) -> bytes:
    """The index says where everything is, itself included: its length is settled once its numbers do not grow."""
    begin = 0
    while True:
        at, index = begin, {}
        for name, code in codes.items():
            index[name] = (*entries[name], at, len(code))
            at += len(code)
        head = marshal.dumps((_PYTHON, index))
        if len(head) <= begin:
            return head.ljust(begin, b"\0") + b"".join(codes.values())
        begin = len(head)
