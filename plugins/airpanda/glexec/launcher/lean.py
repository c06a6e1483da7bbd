"""Importing ``cryptography`` without what no launcher uses of it, which is half of the time that its import takes.

Two things are left out, for the time of the import only: reading names in text form (its regular expressions take 6 ms
to compile) and OpenSSH's key format (8 ms, with ``dataclasses`` and ciphers); the address parser behind names that are
e-mail addresses (3 ms) is imported at its first use. A version of the package that is built in another way is imported
whole; nothing but time depends on this.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_PACKAGE = "cryptography."
_LEFT_OUT = "cryptography.hazmat.primitives.serialization.ssh"
_LATER = "email.utils"


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """For the import statements inside; the process has one thread."""
    compile_now = re.compile
    wanted = {_LEFT_OUT: _Nothing(_LEFT_OUT), _LATER: _Addresses(_LATER)}
    stand_ins = {name: module for name, module in wanted.items() if name not in sys.modules}
    sys.modules.update(stand_ins)

    def compile_later(pattern: Any, flags: Any = 0) -> Any:
        importer = str(sys._getframe(1).f_globals.get("__name__"))
        return _Pattern(pattern, flags) if importer.startswith(_PACKAGE) else compile_now(pattern, flags)

    re.compile = compile_later
    try:
        yield
    finally:
        re.compile = compile_now
        for name in stand_ins:
            del sys.modules[name]


class _Pattern:
    """A regular expression that is compiled when somebody uses it."""

    def __init__(self, pattern: Any, flags: Any) -> None:
        self._arguments = pattern, flags

    def __getattr__(self, name: str) -> Any:
        return getattr(re.compile(*self._arguments), name)


class _Nothing(ModuleType):
    """A module all of whose names mean nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Addresses(ModuleType):
    """``email.utils`` in outline."""

    @staticmethod
    def parseaddr(address: Any) -> Any:
        from email.utils import parseaddr

        return parseaddr(address)
