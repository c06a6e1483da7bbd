"""Importing what a launch needs without what none uses of it: half of the time that its imports would take.

For the time of the imports only, some modules have a stand-in. One is left out: OpenSSH's key format (8 ms, with
``dataclasses`` and ciphers). The others are imported when somebody uses them, which is never in most launches: hashes
by the C library of OpenSSL, random numbers, parsers of URLs and of mail addresses. Regular expressions of ours and of
``cryptography`` are compiled at their first use. A package that is built in another way is imported whole; nothing but
time depends on this.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_LATE_PATTERNS = ("cryptography.", "airpanda.")
_LEFT_OUT = "cryptography.hazmat.primitives.serialization.ssh"
# With the functions that are imported from them by name.
_LATER = {
    "email.utils": ("parseaddr",),
    "hashlib": (),
    "hmac": (),
    "random": (),
    "urllib.parse": ("quote_from_bytes",),
}


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """For the import statements inside; the process has one thread."""
    compile_now = re.compile
    wanted: dict[str, ModuleType] = {_LEFT_OUT: _Nothing(_LEFT_OUT), **{name: _Later(name) for name in _LATER}}
    stand_ins = {name: module for name, module in wanted.items() if name not in sys.modules}
    sys.modules.update(stand_ins)

    def compile_later(pattern: Any, flags: Any = 0) -> Any:
        importer = str(sys._getframe(1).f_globals.get("__name__"))
        return _Pattern(pattern, flags) if importer.startswith(_LATE_PATTERNS) else compile_now(pattern, flags)

    re.compile = compile_later
    try:
        yield
    finally:
        re.compile = compile_now
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
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


class _Later(ModuleType):
    """A module that is imported when somebody uses a name of it, or calls one of the functions listed above."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _LATER[self.__name__]:
            return lambda *arguments, **named: getattr(self._imported(), name)(*arguments, **named)
        return getattr(self._imported(), name)

    def _imported(self) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        __import__(self.__name__)
        return sys.modules[self.__name__]
