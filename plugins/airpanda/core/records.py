"""Frozen records: the part of ``dataclasses`` that values of ours use, without the cost of importing it.

``dataclasses`` imports ``inspect`` and compiles source text for each class. That is a fifth of the time that a program
needs which is started anew for every step of every job, as the launcher is by sudo. Type checkers see the real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
else:
    _MISSING = object()

    class _Field:
        def __init__(self, default, default_factory, repr):
            self.default, self.default_factory, self.repr = default, default_factory, repr

    def field(*, default=_MISSING, default_factory=_MISSING, repr=True):
        """As in ``dataclasses``."""
        return _Field(default, default_factory, repr)

    def dataclass(*, frozen, eq=True):
        """As in ``dataclasses``, for classes without bases of the same kind; always frozen."""
        if not frozen:
            raise TypeError("records are frozen")

        def make(cls):
            fields = {name: _field_of(cls, name) for name in cls.__annotations__}
            for name, one in fields.items():
                if one.default_factory is not _MISSING:
                    delattr(cls, name)
                elif one.default is not _MISSING:
                    setattr(cls, name, one.default)
                elif name in cls.__dict__:
                    delattr(cls, name)
            cls.__record_fields__ = fields
            cls.__init__, cls.__setattr__, cls.__delattr__ = _init, _refuse, _refuse
            if "__repr__" not in cls.__dict__:
                cls.__repr__ = _repr
            if eq:
                cls.__eq__, cls.__hash__ = _equal, _hash
            return cls

        return make

    def replace(record, **changes):
        """A copy of the record with other values."""
        return type(record)(**{**dict(zip(record.__record_fields__, _values(record))), **changes})

    def _field_of(cls, name):
        value = cls.__dict__.get(name, _MISSING)
        return value if isinstance(value, _Field) else _Field(value, _MISSING, True)

    def _init(self, *args, **kwargs):
        fields, kind = self.__record_fields__, type(self).__name__
        if len(args) > len(fields):
            raise TypeError(f"{kind} takes {len(fields)} values, not {len(args)}")
        values = dict(zip(fields, args))
        for name in kwargs:
            if name not in fields or name in values:
                raise TypeError(f"{kind} takes no {name!r}, or got it twice")
        values.update(kwargs)
        for name, one in fields.items():
            if name not in values:
                if one.default_factory is not _MISSING:
                    values[name] = one.default_factory()
                elif one.default is not _MISSING:
                    values[name] = one.default
                else:
                    raise TypeError(f"{kind} needs {name!r}")
        self.__dict__.update({name: values[name] for name in fields})
        check = getattr(self, "__post_init__", None)
        if check is not None:
            check()

    def _refuse(self, name, value=None):
        raise AttributeError(f"cannot change {name!r} of a {type(self).__name__}")

    def _repr(self):
        shown = (f"{name}={self.__dict__[name]!r}" for name, one in self.__record_fields__.items() if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _equal(self, other):
        return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented

    def _hash(self):
        return hash(_values(self))

    def _values(self):
        return tuple(self.__dict__[name] for name in self.__record_fields__)


__all__ = ["dataclass", "field", "replace"]
